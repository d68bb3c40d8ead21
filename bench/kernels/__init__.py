"""Checks and times the CUDA kernels: `python -m bench.kernels` (README.md)."""
