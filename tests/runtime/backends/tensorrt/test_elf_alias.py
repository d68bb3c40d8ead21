"""A library found under a name it is not shipped under."""

from __future__ import annotations

import ctypes
import ctypes.util
import platform
from pathlib import Path

import pytest

from deltart.runtime.backends.tensorrt.elf_alias import load_alias

pytestmark = pytest.mark.skipif(platform.system() != "Linux", reason="ELF is Linux's")


def loaded(name: str) -> Path:
    return next(Path(line.split()[-1]) for line in open("/proc/self/maps") if line.rstrip().endswith(name))


def test_symbols_are_found_under_the_new_name() -> None:
    original = ctypes.CDLL("libm.so.6")
    with pytest.raises(OSError):
        ctypes.CDLL("libdeltart_alias_test.so")
    load_alias(loaded("/libm.so.6"), "libdeltart_alias_test.so")
    alias = ctypes.CDLL("libdeltart_alias_test.so")
    address = ctypes.cast(alias.cosf, ctypes.c_void_p).value
    assert address == ctypes.cast(original.cosf, ctypes.c_void_p).value
