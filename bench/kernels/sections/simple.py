"""The ops whose cases are in their folders: the convolution, the norms, the rotation and the routed experts."""

from __future__ import annotations

from collections.abc import Iterator

from bench.kernels import peers
from bench.kernels.run import Run, checked_and_timed
from bench.kernels.table import Row
from deltart.plugins.causal_conv1d import cases as convolution
from deltart.plugins.gated_rms_norm import cases as gated_norm
from deltart.plugins.moe_experts import cases as routed
from deltart.plugins.qk_norm_rope import cases as rotation
from deltart.plugins.residual_rms_norm import cases as residual_norm


def conv(run: Run) -> Iterator[Row]:
    """The causal convolution, decode and prefill."""
    rivals = {"torch": peers.torch_conv} if run.rivals else {}
    if run.rivals and peers.available():
        rivals["fla"] = peers.fla_conv
    yield from checked_and_timed(run, "conv", convolution.timed(run.small), rivals)


def norm(run: Run) -> Iterator[Row]:
    """The gated RMS norm of one token and of a long prompt."""
    yield from checked_and_timed(run, "norm", gated_norm.timed(run.small))


def rope(run: Run) -> Iterator[Row]:
    """Normalised, rotated queries and keys."""
    yield from checked_and_timed(run, "rope", rotation.timed(run.small))


def residual(run: Run) -> Iterator[Row]:
    """The residual sum and the norm after it."""
    yield from checked_and_timed(run, "residual", residual_norm.timed(run.small))


def experts(run: Run) -> Iterator[Row]:
    """A layer of the 35B's experts, FP8 and BF16: decode, calls with drafts, prompts."""
    device = run.device
    yield from checked_and_timed(run, "experts", routed.timed(run.small, device.capability, device.multiprocessors))
