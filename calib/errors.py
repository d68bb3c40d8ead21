"""The error of calibration itself; broken checkpoints and configs raise the errors of `deltart.errors`."""

from __future__ import annotations

from deltart.errors import DeltaRTError


class CalibrationError(DeltaRTError):
    """Calibration can't start or go on: unusable text, an output in use, too little disk, an impossible request."""
