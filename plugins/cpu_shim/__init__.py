"""Runs the CUDA sources of the kernels on the CPU: shim.hpp gives g++ the CUDA it needs, runner.py calls it."""
