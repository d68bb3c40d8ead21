"""Every error DeltaRT raises on purpose: what was found, what was expected, what to do."""

from __future__ import annotations


class DeltaRTError(Exception):
    """Base of all deliberate errors. The CLI prints it without a traceback and exits with code 2.

    Args:
        found: what is wrong, naming the file, tensor or field.
        expected: what would have been right.
        hint: what the user can do about it.
    """

    def __init__(self, found: str, expected: str = "", hint: str = "") -> None:
        self.found, self.expected, self.hint = found, expected, hint
        lines = [found]
        if expected:
            lines.append(f"  expected: {expected}")
        if hint:
            lines.append(f"\nhint: {hint}")
        super().__init__("\n".join(lines))


class ConfigError(DeltaRTError):
    """A config.json that is missing, malformed, or holds a value the graph can't honour."""


class CheckpointError(DeltaRTError):
    """A safetensors file, index or tensor that is missing, truncated or misshapen."""


class ExportError(DeltaRTError):
    """Export could not produce a complete, checked artifact."""


class OutputError(ExportError):
    """A folder that can't be written, or that must not be replaced; it is as it was."""


class ArtifactError(DeltaRTError):
    """An artifact folder that is absent, incomplete, of another version, or whose weights changed."""


class CalibrationError(DeltaRTError):
    """Calibration can't start or go on: unusable text, an output in use, too little disk, an impossible request."""


class MergeError(DeltaRTError):
    """An adapter that can't be merged, does not fit its base model, or a merge that can't start or go on."""


class BuildError(DeltaRTError):
    """A kernel, plugin library or TensorRT engine could not be built."""


class WeightsRewrittenWarning(UserWarning):
    """A weight file was written after the export, and what was compared of it is as it was."""


class CacheError(DeltaRTError):
    """The folder of compiled kernels and plans can't be used, or is not safe to load from."""


class GenerationError(DeltaRTError):
    """A prompt or sampling request that can't be served."""


class QueueFullError(GenerationError):
    """Too many requests wait already; the same request may be served later."""


class ClosedError(GenerationError):
    """The engine takes no more requests."""


class BenchError(DeltaRTError):
    """A measurement that can't be taken, or a baseline that doesn't exist or is of another machine or setting."""


class PlanError(DeltaRTError):
    """A device that isn't known, or a plan that can't be made for it."""


class MissingDependencyError(DeltaRTError):
    """An optional package or tool that the requested action needs is not installed."""
