// Compiled once per instruction set, each time with UMAMBA_KERNELS as the name of the one thing it exports.
#include "conv.h"
#include "scan.h"

extern const UmambaKernels UMAMBA_KERNELS;
const UmambaKernels UMAMBA_KERNELS = {scan_forward, scan_backward, conv_forward, conv_backward};
