"""Peak resident memory of a test's child, for its script."""

from __future__ import annotations

# What getrusage tells of a child begins with the memory of the process that started it, which shared it until then.
PEAK = """
def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
"""
