"""What a kernel call is, for every executor: the CPU shim, the CUDA driver and a TensorRT plugin."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

from deltart.errors import BuildError

Arguments = tuple[ctypes.c_void_p | ctypes.c_int | ctypes.c_longlong | ctypes.c_float, ...]


@dataclass(frozen=True)
class Launch:
    """One kernel launch: entry point, geometry, bytes of dynamic shared memory, arguments by value.

    Pointers are integers in `c_void_p`: device addresses on a GPU, host addresses in the CPU shim.
    """

    kernel: str
    grid: tuple[int, int, int]
    block: int
    shared_bytes: int
    args: Arguments


def require(condition: bool, found: str, expected: str) -> None:
    """Raises BuildError for a shape that the kernels do not take."""
    if not condition:
        raise BuildError(found, expected, "use the portable body of this op, or extend its kernel")


def pointers(at: dict[str, int], *names: str) -> Arguments:
    """The addresses of `names`, in that order."""
    return tuple(ctypes.c_void_p(at[name]) for name in names)


def ints(*values: int) -> Arguments:
    """32-bit integer arguments."""
    return tuple(ctypes.c_int(value) for value in values)
