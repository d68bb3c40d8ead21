"""Weight streaming: every byte once, at its place, in bounded reads."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from deltart.manifest import WeightEntry
from deltart.plugins.cpu_shim.host_cuda import HostCuda, memory
from deltart.runtime.backends.gpu import weight_stream


def entries(sizes: list[tuple[str, int, int]]) -> dict[str, WeightEntry]:
    return {f"{file}@{at}": WeightEntry("bound", "F8_E4M3", [n], file, at, n) for file, at, n in sizes}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    rng = np.random.default_rng(0)
    paths = {name: tmp_path / name for name in ("a", "b")}
    for path in paths.values():
        path.write_bytes(rng.integers(0, 256, 5_000_000, np.uint8).tobytes())
    return paths


@pytest.mark.parametrize("buffer_bytes", [1000, 4096, 1 << 20])
def test_every_tensor_arrives(files: dict[str, Path], buffer_bytes: int) -> None:
    tensors = entries([("b", 10, 999), ("a", 7, 1), ("a", 8, 12_345), ("a", 2_000_000, 4096), ("b", 4_990_000, 10_000)])
    place = weight_stream.layout(tensors)
    plan = list(weight_stream.reads(tensors, place, buffer_bytes))
    cuda = HostCuda()
    base = cuda.allocate(place.nbytes)
    weight_stream.stream_weights(cuda, files, plan, base, buffer_bytes)
    for name, entry in tensors.items():
        expected = files[entry.file].read_bytes()[entry.offset : entry.offset + entry.nbytes]
        assert memory(base + place.offsets[name], entry.nbytes).tobytes() == expected
    assert all(0 < read.nbytes <= buffer_bytes for read in plan)
    assert cuda.copied == sum(entry.nbytes for entry in tensors.values())
    assert not cuda.pins


def test_neighbours_share_a_read_and_large_gaps_are_skipped() -> None:
    tensors = entries([("a", 0, 100), ("a", 100, 100), ("a", 5000, 100), ("a", 3_000_000, 100)])
    plan = list(weight_stream.reads(tensors, weight_stream.layout(tensors), 1 << 20))
    assert [(read.begin, read.nbytes, len(read.copies)) for read in plan] == [(0, 5100, 3), (3_000_000, 100, 1)]


def test_layout_is_aligned_and_does_not_overlap() -> None:
    tensors = entries([("a", 0, 257), ("a", 300, 1), ("b", 0, 256)])
    place = weight_stream.layout(tensors)
    ends = sorted((at, at + tensors[name].nbytes) for name, at in place.offsets.items())
    assert all(at % 256 == 0 for at, _ in ends)
    assert all(end <= following for (_, end), (following, _) in itertools.pairwise(ends))
    assert ends[-1][1] <= place.nbytes


def test_truncated_file(files: dict[str, Path]) -> None:
    tensors = entries([("a", 4_999_000, 2000)])
    place = weight_stream.layout(tensors)
    cuda = HostCuda()
    with pytest.raises(OSError, match="ends at byte 5000000"):
        plan = weight_stream.reads(tensors, place)
        weight_stream.stream_weights(cuda, files, plan, cuda.allocate(place.nbytes), 1 << 20)
