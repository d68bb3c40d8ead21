"""Bounds on what an engine may be built for: far beyond what a GPU has room for. TensorRT dies of absurd ones."""

MAX_SLOTS, MAX_CHUNK = 1024, 32768
