// The plain C interface of the library: what Python passes through ctypes. native/__init__.py mirrors the structs;
// change UMAMBA_ABI here and ABI there whenever a struct or the meaning of a field changes.
#pragma once

#include <stdint.h>

#define UMAMBA_ABI 2

enum UmambaDtype { UMAMBA_FLOAT32, UMAMBA_BFLOAT16, UMAMBA_FLOAT16, UMAMBA_FLOAT64 };

// A (batch, channels, tokens) or (batch, groups, channels, tokens) tensor in memory order. Strides are in elements, of
// any sign, or 0. A tensor that is not given has data = NULL.
struct UmambaTensor {
  void* data;
  int64_t batch_stride, group_stride, channel_stride, token_stride;
  int32_t dtype;
};

// One selective scan. "real" is float, or double if is_double. Arrays without a struct are contiguous.
struct UmambaScan {
  int64_t batch, groups, channels, length, states;  // channels: of one group
  int64_t slices;                                   // the scan order, see order.py
  int64_t span;                                     // tokens that `partial` holds, a multiple of UMAMBA_CHUNK
  int32_t reverse, softplus, is_double, threads;
  UmambaTensor u, delta, z, B, C, out;
  UmambaTensor dout, dlast, du, ddelta, dz, dB, dC;  // dlast is (batch, d, states): its tokens are the states
  const void *A, *D, *bias;  // real (states, d), (d), (d); D and bias may be NULL
  void* chunk_states;        // real (batch, chunks, states, d): the state before each chunk; NULL: not wanted
  void* last_state;          // real (batch, d, states)
  void *dA, *dD, *dbias;     // real (states, d), (d), (d)
  void* carry;               // real (batch, states, d): the adjoint between two spans
  double* sums;              // (batch, states + 2, d), zeros: dA, dD and dbias of each batch entry
  void* partial;             // real (batch, groups, partitions, 2, span, states): dB and dC of each partition
};

// One causal convolution.
struct UmambaConv {
  int64_t batch, channels, length, width;
  int64_t slices;
  int64_t segment;  // tokens whose share of dweight is summed up at a time, a multiple of UMAMBA_CHUNK
  int32_t reverse, silu, is_double, threads;
  UmambaTensor x, out, dout, dx;
  const void *weight, *bias;  // real (width, channels), (channels) or NULL
  void *dweight, *dbias;      // real (width, channels), (channels)
  double* sums;               // (batch, segments, width + 1, channels)
};

enum {
  UMAMBA_CHUNK = 64,  // tokens of a tile, and between two saved states
  UMAMBA_BLOCK = 16,  // channels of a tile
  UMAMBA_PARTITIONS = 16,  // shares of a group in the sums over channels, at most
};

// One build of the kernels for one instruction set. Every function returns 0, or 1 when memory ran out.
struct UmambaKernels {
  int (*scan_forward)(const UmambaScan&);
  int (*scan_backward)(const UmambaScan&);
  int (*conv_forward)(const UmambaConv&);
  int (*conv_backward)(const UmambaConv&);
};

// Runs work(context, task) for task = 0 .. tasks - 1 on up to `threads` threads, each task once, in any order; returns
// the bitwise or of the results.
int umamba_parallel(int threads, int64_t tasks, int (*work)(const void* context, int64_t task), const void* context);
