"""The cases that the benchmark times, on the CPU shim: each keeps to its tolerance, and a wrong result does not."""

from __future__ import annotations

import numpy as np
import pytest

from deltart.plugins.cases import KernelCase
from deltart.plugins.causal_conv1d import cases as convolution
from deltart.plugins.cpu_shim.runner import compile_cpu
from deltart.plugins.gated_delta_rule import cases as delta_rule
from deltart.plugins.gated_rms_norm import cases as gated_norm
from deltart.plugins.moe_experts import cases as experts
from deltart.plugins.qk_norm_rope import cases as rotation
from deltart.plugins.residual_rms_norm import cases as residual_norm

SMALL = [case for op in (convolution, gated_norm, rotation, residual_norm) for case in op.timed(small=True)]
SMALL += [*delta_rule.timed_joined(small=True), *experts.timed_joined(small=True)]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: f"{case.source.parent.name} {case.name}")
def test_small_cases_on_the_shim(case: KernelCase) -> None:
    given = case.given(0)
    arrays = {name: array.copy() for name, array in (given | case.outputs()).items()}
    compile_cpu(case.source).run(case.launches({name: array.ctypes.data for name, array in arrays.items()}))
    assert case.passed(case.errors(given, arrays.__getitem__))
    result = next(iter(case.expected(given)))
    arrays[result].reshape(-1)[::7] *= np.float32(1.5)
    assert not case.passed(case.errors(given, arrays.__getitem__))


def test_bytes_count_what_is_rewritten_twice() -> None:
    case = next(convolution.timed(small=False))
    arrays = {"x": np.zeros(4, np.int8), "state": np.zeros(3, np.int8)}
    assert case.moved(arrays) == 4 + 2 * 3
