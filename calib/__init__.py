"""Calibration of BF16 checkpoints to FP8 and int4."""
