"""Interrupted merges and outputs that are there already: the same bytes in the end, and nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from deltart import staging
from deltart.errors import MergeError, OutputError
from deltart.export.merge.pipeline import MERGE, RECORD, merge
from deltart.export.synthetic.presets import causal_lm, text_config
from deltart.export.synthetic.write import write_checkpoint
from support.adapters import Base, edit, linears, write_adapter
from support.calibration import SIZES, VOCAB


class Killed(BaseException):
    """Ends a run the way a kill does: nothing of ours gets to tidy up after it."""


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run_until(count: int, base: Path, adapter: Path, output: Path, **arguments: bool) -> list[str] | None:
    """Start (or go on with) a merge and kill it after `count` tensors; what it said if it got to its end first."""
    left, said = [count], list[str]()

    def progress(share: float) -> None:
        assert 0 < share <= 1
        left[0] -= 1
        if left[0] < 0:
            raise Killed

    try:
        merge(base, adapter, output, log=said.append, progress=progress, **arguments)
    except Killed:
        return None
    return said


@pytest.fixture
def expected(base: Base, adapter: Path, tmp_path: Path) -> dict[str, bytes]:
    merge(base("BF16"), adapter, tmp_path / "expected")
    return contents(tmp_path / "expected")


def test_killed_again_and_again(base: Base, adapter: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    output = tmp_path / "out"
    for count in (2, 9, 20):
        assert run_until(count, base("BF16"), adapter, output) is None and not output.exists()
    journal = (tmp_path / ".out.partial" / ".merge" / "journal.jsonl").read_text().splitlines()
    assert len({json.loads(line)["name"] for line in journal}) == 21
    said = run_until(100, base("BF16"), adapter, output)
    assert said and said[0] == "31 tensors of 71 to merge, 21 of them done before"
    assert contents(output) == expected and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("damage", ["journal cut short", "weights lost"])
def test_work_that_can_not_be_trusted_is_done_again(
    damage: str, base: Base, adapter: Path, expected: dict[str, bytes], tmp_path: Path
) -> None:
    assert run_until(20, base("BF16"), adapter, tmp_path / "out") is None
    journal = tmp_path / ".out.partial" / ".merge" / "journal.jsonl"
    if damage == "journal cut short":
        journal.write_bytes(journal.read_bytes()[:-37])
    else:  # as when the machine loses power before the disk has the data
        weights = tmp_path / ".out.partial" / "out" / "model.safetensors"
        raw = weights.read_bytes()
        weights.write_bytes(raw[: len(raw) // 2] + bytes(len(raw) - len(raw) // 2))
    said = run_until(100, base("BF16"), adapter, tmp_path / "out")
    assert said and "done before" in said[0] and "21 of them" not in said[0]
    assert contents(tmp_path / "out") == expected


def test_unfinished_work_of_another_adapter_is_not_thrown_away(base: Base, adapter: Path, tmp_path: Path) -> None:
    assert run_until(5, base("BF16"), adapter, tmp_path / "out") is None
    before = contents(tmp_path / ".out.partial")
    edit(adapter, lora_alpha=4)
    with pytest.raises(MergeError, match=r"unfinished work on the same output with other adapter"):
        merge(base("BF16"), adapter, tmp_path / "out")
    assert contents(tmp_path / ".out.partial") == before


def test_unfinished_work_of_another_base_is_not_thrown_away(base: Base, adapter: Path, tmp_path: Path) -> None:
    """Of other files too."""
    assert run_until(5, base("BF16"), adapter, tmp_path / "out") is None
    before = contents(tmp_path / ".out.partial")
    write_checkpoint(causal_lm(text_config(**SIZES, vocab=VOCAB)), tmp_path / "other", file_per_layer=True)
    with pytest.raises(MergeError, match=r"unfinished work on the same output with other base"):
        merge(tmp_path / "other", adapter, tmp_path / "out")
    assert contents(tmp_path / ".out.partial") == before


def test_two_runs_do_not_share_the_work(base: Base, adapter: Path, tmp_path: Path) -> None:
    def progress(*_: object) -> None:
        with pytest.raises(MergeError, match="another run is at work"):
            merge(base("BF16"), adapter, tmp_path / "out")

    merge(base("BF16"), adapter, tmp_path / "out", progress=progress)


def test_a_disk_that_is_full(
    base: Base, adapter: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(staging, "_copy_range", full)
    with pytest.raises(MergeError, match=r"(?s)No space left.*run it again to go on"):
        merge(base("BF16"), adapter, tmp_path / "out")
    monkeypatch.undo()
    merge(base("BF16"), adapter, tmp_path / "out")
    assert contents(tmp_path / "out") == expected


def test_an_output_in_use(base: Base, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputError, match="already in use"):
            merge(base("BF16"), adapter, tmp_path / "out", overwrite=overwrite)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


def test_a_merged_checkpoint_is_replaced(base: Base, adapter: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first", base("BF16"), linears(base("BF16"))[:3])
    merge(base("BF16"), first, tmp_path / "out")
    with pytest.raises(OutputError, match="already in use"):
        merge(base("BF16"), adapter, tmp_path / "out")
    merge(base("BF16"), adapter, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == expected and not list(tmp_path.glob(".*"))


def test_what_else_is_in_a_merged_checkpoint_is_kept(base: Base, adapter: Path, tmp_path: Path) -> None:
    merge(base("BF16"), adapter, tmp_path / "out")
    (tmp_path / "out" / "notes.md").touch()
    with pytest.raises(OutputError, match=r"did not write: notes\.md"):
        merge(base("BF16"), adapter, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.md").exists()


@pytest.mark.parametrize("inside", ["base", "adapter"])
def test_neither_base_nor_adapter_is_replaced(inside: str, base: Base, adapter: Path, own: Path) -> None:
    """Even where it is a merged checkpoint itself."""
    place = {"base": own, "adapter": adapter}[inside]
    (place / RECORD).write_text('{"adapter": {}, "base_model": "", "weights": {}, "files": ["*"]}')
    before = contents(place)
    with pytest.raises(OutputError, match="which is to be read"):
        merge(own, adapter, place, overwrite=True)
    assert contents(place) == before


@pytest.mark.parametrize("moment", ["before the exchange", "after it"])
def test_killed_while_it_replaces(
    moment: str, base: Base, adapter: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the old one is there or the new one; the next run ends with the new one."""
    first = write_adapter(tmp_path / "first", base("BF16"), linears(base("BF16"))[:3])
    merge(base("BF16"), first, tmp_path / "out")
    old, put = contents(tmp_path / "out"), staging.put

    def killed(*arguments: object) -> None:
        if moment == "after it":
            put(*arguments)  # type: ignore[arg-type]
        raise Killed

    monkeypatch.setattr(staging, "put", killed)
    with pytest.raises(Killed):
        merge(base("BF16"), adapter, tmp_path / "out", overwrite=True)
    assert contents(tmp_path / "out") == (expected if moment == "after it" else old)
    monkeypatch.undo()
    said = run_until(100, base("BF16"), adapter, tmp_path / "out", overwrite=True)
    assert said and ("31 of them done before" in said[0]) == (moment == "before the exchange")
    assert contents(tmp_path / "out") == expected and not list(tmp_path.glob(".*"))


def test_output_that_can_not_be_renamed(
    base: Base, adapter: Path, expected: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the working directory, or a mount point: the work lies inside until it is done."""
    output = tmp_path / "out"
    output.mkdir()
    monkeypatch.chdir(output)
    assert run_until(7, base("BF16"), adapter, Path(".")) is None
    assert [path.name for path in output.iterdir()] == [".out.partial"]
    assert run_until(100, base("BF16"), adapter, Path("."))
    assert contents(output) == expected


def test_other_hidden_folders_are_not_taken(base: Base, adapter: Path, tmp_path: Path) -> None:
    (tmp_path / ".out.partial" / ".calibration").mkdir(parents=True)
    with pytest.raises(MergeError, match="is no unfinished merge"):
        merge(base("BF16"), adapter, tmp_path / "out")
    assert (tmp_path / ".out.partial" / ".calibration").is_dir()


@pytest.mark.parametrize(
    "record", ["", "[]", "{}", '{"files": ["*"]}', '{"adapter": {}, "base_model": 1, "weights": {}, "files": ["*"]}']
)
def test_folders_with_another_record_are_none_of_ours(record: str, tmp_path: Path) -> None:
    (tmp_path / RECORD).write_text(record)
    assert MERGE.marker.written(tmp_path) is None


SCRIPT = """
import sys
from pathlib import Path
from deltart.export.merge.pipeline import merge
base, adapter, output = map(Path, sys.argv[1:])
print("ready", flush=True)
merge(base, adapter, output)
"""


@pytest.mark.slow
def test_sigkill_at_random_moments(base: Base, adapter: Path, expected: dict[str, bytes], tmp_path: Path) -> None:
    output, rng, kills = tmp_path / "out", np.random.default_rng(0), 0
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    while True:
        command = [sys.executable, "-c", SCRIPT, str(base("BF16")), str(adapter), str(output)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        assert process.stdout is not None
        process.stdout.readline()  # imports are over
        time.sleep(float(rng.uniform(0, 0.05)))
        if kills < 8 and process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        if process.wait() == 0:
            break
        shutil.rmtree(output, ignore_errors=True)
    assert kills >= 1 and contents(output) == expected
