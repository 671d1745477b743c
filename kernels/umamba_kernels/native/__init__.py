"""The shared library of the backend "cpu": C++ behind a plain C interface, without Python's or torch's ABI.

It is built when the package is installed and a C++ compiler is found (see ``setup.py``), for several instruction sets
of which the CPU's best is chosen at run time. Nothing is loaded before it is asked for.
"""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor

from umamba_kernels.tracing import dry_backend

LIBRARY = Path(__file__).with_name("libumamba_native.so")
ABI = 2  # UMAMBA_ABI of src/interface.h

# Of src/interface.h as well.
CHUNK, BLOCK, PARTITIONS = 64, 16, 16
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}


class TensorArgument(ctypes.Structure):
    """``UmambaTensor``: address, strides (batch, group, channel, token) in elements, dtype."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("strides", ctypes.c_int64 * 4),
        ("dtype", ctypes.c_int32),
    )


class ScanArguments(ctypes.Structure):
    """``UmambaScan``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "groups", "channels", "length", "states", "slices", "span")),
        *((name, ctypes.c_int32) for name in ("reverse", "softplus", "is_double", "threads")),
        *((name, TensorArgument) for name in ("u", "delta", "z", "B", "C", "out")),
        *((name, TensorArgument) for name in ("dout", "dlast", "du", "ddelta", "dz", "dB", "dC")),
        *((name, ctypes.c_void_p) for name in ("A", "D", "bias", "chunk_states", "last_state")),
        *((name, ctypes.c_void_p) for name in ("dA", "dD", "dbias", "carry", "sums", "partial")),
    )


class ConvArguments(ctypes.Structure):
    """``UmambaConv``."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "channels", "length", "width", "slices", "segment")),
        *((name, ctypes.c_int32) for name in ("reverse", "silu", "is_double", "threads")),
        *((name, TensorArgument) for name in ("x", "out", "dout", "dx")),
        *((name, ctypes.c_void_p) for name in ("weight", "bias", "dweight", "dbias", "sums")),
    )


@functools.cache
def _load() -> ctypes.CDLL:
    how = "install umamba-seg again where a C++ compiler (g++ or clang++) is on the PATH or named by CXX"
    if not LIBRARY.exists():
        raise OSError(f"{LIBRARY} does not exist: there was no C++ compiler at installation, or it failed; {how}")
    try:
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        raise OSError(f"{LIBRARY} cannot be loaded ({error}); {how}") from error
    if library.umamba_abi() != ABI:
        raise OSError(f"{LIBRARY} is of another version (interface {library.umamba_abi()}, wanted {ABI}); {how}")
    library.umamba_isa.restype = library.umamba_isa_in_use.restype = ctypes.c_char_p
    # The threads of the OpenMP that torch's Linux builds bring along. They are there already, and after every torch op
    # they spin for a while: threads of our own would have to share the cores with them.
    for openmp in Path(torch.__file__).with_name("lib").glob("libgomp*"):
        library.umamba_use_team(ctypes.cast(ctypes.CDLL(str(openmp)).GOMP_parallel, ctypes.c_void_p))
    return library


def instruction_sets() -> list[str]:
    """Those that both the library and this CPU have, best first. The first one is used.

    Raises:
        OSError: The library is not there or cannot be loaded; the message says how to get it.
    """
    library, found = _load(), []
    while name := library.umamba_isa(len(found)):
        found.append(name.decode())
    return found


def instruction_set() -> str:
    """The one in use.

    Raises:
        OSError: The library is not there or cannot be loaded.
    """
    return _load().umamba_isa_in_use().decode()


def use_instruction_set(name: str) -> None:
    """Use another one of :func:`instruction_sets` in this process, for tests and benchmarks.

    Raises:
        OSError: The library is not there or cannot be loaded.
        ValueError: The CPU cannot run it, or the library does not have it.
    """
    if _load().umamba_use_isa(name.encode()):
        raise ValueError(f"instruction set {name!r}, wanted one of {', '.join(instruction_sets())}")


def run(function: str, arguments: ctypes.Structure) -> None:
    """Call a function of the library, which releases Python's lock.

    Raises:
        OSError: The library is not there or cannot be loaded.
        MemoryError: No memory for the tiles.
    """
    if dry_backend() is None and getattr(_load(), f"umamba_{function}")(ctypes.byref(arguments)):
        raise MemoryError(f"{function}: no memory for the tiles of a thread")


def argument(x: Tensor | None) -> TensorArgument:
    """A (batch, channels, tokens) or (batch, groups, channels, tokens) tensor; None is a null pointer."""
    if x is None:
        return TensorArgument()
    strides = x.stride() if x.dim() == 4 else (x.stride(0), 0, *x.stride()[1:])
    return TensorArgument(address(x), strides, _DTYPES[x.dtype])


def address(x: Tensor | None) -> int | None:
    """Of the data of a contiguous tensor."""
    return None if x is None or dry_backend() is not None else x.data_ptr()
