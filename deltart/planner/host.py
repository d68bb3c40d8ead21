"""This machine as a device: copy bandwidth and float32 products, measured."""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from deltart.planner.devices import Device

COPY_BYTES = 64 << 20  # well beyond a cache
SIDE = 1024  # of the matrices
REPEATS, SECONDS = 5, 0.5  # at least: a neighbour must not have all of them


def copy_bandwidth(threads: int = 0) -> float:
    """Bytes/s that a copy reads and writes with all cores (or so many threads): the best of a few."""
    count = threads or os.cpu_count() or 1
    source = np.ones(COPY_BYTES // 8, np.float64)
    target = np.zeros_like(source)
    pieces = list(zip(np.array_split(target, count), np.array_split(source, count), strict=True))

    def copy() -> None:
        workers = [threading.Thread(target=np.copyto, args=piece) for piece in pieces]  # numpy lets go of the lock
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()

    return 2 * source.nbytes / _best(copy)


def product_rate() -> float:
    """FLOP/s of float32 matrix products by numpy's library, with the threads that it takes."""
    a = np.ones((SIDE, SIDE), np.float32)
    return 2 * SIDE**3 / _best(lambda: a @ a)


def host_device(threads: int = 0) -> Device:
    """This machine; takes one or two seconds."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    title = f"this CPU ({host_name()}, {os.cpu_count()} cores)"
    return Device(title, float(memory), copy_bandwidth(threads), product_rate(), float_weights=True)


def host_name() -> str:
    """The processor's name as the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _best(work: Callable[[], object]) -> float:
    taken: list[float] = []
    while len(taken) < REPEATS or sum(taken) < SECONDS:
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)
