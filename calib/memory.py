"""Memory that tensors have left."""

from __future__ import annotations

import ctypes
import sys


def release() -> None:
    """Hand what was freed back to the system.

    glibc keeps freed blocks below 32 MB, and between tensors of many sizes they pile up: by several hundred MB.
    """
    if sys.platform == "linux" and hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
