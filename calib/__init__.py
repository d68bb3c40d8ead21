"""FP8 block-128 calibration of BF16 checkpoints."""
