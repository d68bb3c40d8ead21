"""Files that the safetensors library reads, and files that it wrote; export/test_broken_inputs.py has broken ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from deltart.errors import CheckpointError
from deltart.safetensors import header_sha256, index_of, plan_file, read_file, shard_name, unplaced


def test_the_library_reads_a_planned_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = {"b": rng.standard_normal((3, 5), np.float32), "a": rng.standard_normal(7).astype(np.float16)}
    dtypes = {"b": "F32", "a": "F16"}
    plan = plan_file("x.safetensors", [unplaced(n, dtypes[n], v.shape) for n, v in values.items()], {"format": "pt"})
    assert len(plan.header) % 8 == 0
    (tmp_path / plan.name).write_bytes(plan.header)
    with (tmp_path / plan.name).open("r+b") as file:
        for name, info in plan.tensors.items():
            file.seek(info.offset)
            file.write(values[name].tobytes())
    assert (tmp_path / plan.name).stat().st_size == plan.size
    found = load_file(tmp_path / plan.name)
    assert found.keys() == values.keys()
    assert all(np.array_equal(found[name].numpy(), value) for name, value in values.items())
    with safe_open(tmp_path / plan.name, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_a_file_of_the_library_is_read(tmp_path: Path) -> None:
    path = tmp_path / "y.safetensors"
    values = {"x": torch.arange(6, dtype=torch.float32).view(2, 3), "scalar": torch.tensor(2.5)}
    save_file(values, path, {"from": "a test"})
    file, tensors = read_file(path)
    raw = path.read_bytes()
    assert (file.name, file.size) == (path.name, len(raw))
    assert file.header_sha256 == hashlib.sha256(raw[: min(t.offset for t in tensors)]).hexdigest()
    assert file.header_sha256 == header_sha256(np.memmap(path, np.uint8, "r"))
    for info in tensors:
        stored = np.frombuffer(raw[info.offset : info.offset + info.nbytes], np.float32).reshape(info.shape)
        assert np.array_equal(stored, values[info.name].numpy())


@pytest.mark.parametrize("metadata", [{}, {"a": "b"}, None, 1, [], "x", {"a": 1}, {"a": None}], ids=str)
def test_metadata_is_what_the_library_takes(metadata: Any, tmp_path: Path) -> None:
    path = tmp_path / "z.safetensors"
    entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
    raw = json.dumps({"__metadata__": metadata, "x": entry}).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + b"\0")
    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError:
        with pytest.raises(CheckpointError, match="__metadata__"):
            read_file(path)
    else:
        assert [info.name for info in read_file(path)[1]] == ["x"]


def test_names_and_index_of_shards() -> None:
    assert [shard_name(1, 1), shard_name(2, 12)] == ["model.safetensors", "model-00002-of-00012.safetensors"]
    plan = plan_file("z", [unplaced("b", "BF16", (2, 2)), unplaced("a", "F8_E4M3", (3,))])
    index = index_of(plan.tensors.values())
    assert index == {"metadata": {"total_size": 11}, "weight_map": {"a": "z", "b": "z"}}
    assert list(index["weight_map"]) == ["a", "b"]
