"""Baselines on disk: what was measured, of what and in which setting; and a line of history for every comparison."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deltart.errors import BenchError
from deltart.files import write_atomically
from deltart.json_files import parse_json, read_json
from deltart.latency.setting import Setting, Subject
from deltart.latency.turns import Samples
from deltart.latency.verdict import Verdict
from deltart.typed import typed

FOLDER = Path(".bench/baselines")
HISTORY = "history.jsonl"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
AGAIN = "measure it again with --save"


@dataclass(frozen=True)
class Baseline:
    """A stored measurement: two arms of one subject, whose difference is the machine's noise."""

    name: str
    taken: str
    setting: Setting
    subject: Subject
    samples: Samples


def save(folder: Path, name: str, setting: Setting, subject: Subject, samples: Samples) -> Path:
    """Write the baseline `name`, in place of one of that name; where it is.

    Raises:
        BenchError: the name is no plain name, or the folder can't be written.
    """
    path = _path(folder, name)
    content = asdict(Baseline(name, _now(), setting, subject, samples))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, (json.dumps(content) + "\n").encode())
    except OSError as error:
        raise BenchError(
            f"{path} can't be written ({error.strerror})", "a writable folder", "--baselines DIR"
        ) from error
    return path


def load(folder: Path, name: str) -> Baseline:
    """The baseline `name`.

    Raises:
        BenchError: there is none, or it is damaged.
    """
    path = _path(folder, name)
    if not path.is_file():
        known = sorted(p.stem for p in folder.glob("*.json"))
        raise BenchError(
            f"there is no baseline '{name}' in {folder}", f"one of {', '.join(known) or 'none yet'}", AGAIN
        )
    return typed(read_json(path, BenchError, AGAIN), Baseline, str(path), BenchError, AGAIN)


def check_comparable(baseline: Baseline, setting: Setting) -> None:
    """Raises BenchError, with every difference by name, unless the baseline was taken in this setting."""
    found = setting.differences(baseline.setting)
    if found:
        raise BenchError(
            f"baseline '{baseline.name}' is of another machine or setting: {'; '.join(found)}",
            "the same machine, threads and settings",
            "use the baseline's options, or take one here with --save",
        )


def remember(folder: Path, against: str, setting: Setting, subject: Subject, verdicts: list[Verdict]) -> None:
    """Append a comparison to the history."""
    entry = {
        "taken": _now(), "against": against, "device": setting.device, "threads": setting.threads,
        "artifact": subject.digest, "versions": subject.versions,
        "metrics": {
            v.metric: {
                "seconds": v.new_seconds, "base_seconds": v.base_seconds, "outcome": v.outcome,
                "ratios": {name: change.ratio for name, change in v.changes.items()},
            }
            for v in verdicts
        },
    }  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / HISTORY).open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def history(folder: Path, device: str, threads: int) -> Iterator[Mapping[str, Any]]:
    """Earlier comparisons on this device with these threads, oldest first; lines that a kill cut short are skipped."""
    path = folder / HISTORY
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = parse_json(line, str(path), BenchError)
        except BenchError:
            continue
        if isinstance(entry, dict) and (entry.get("device"), entry.get("threads")) == (device, threads):
            yield entry


def _path(folder: Path, name: str) -> Path:
    if not NAME.fullmatch(name):
        raise BenchError(f"'{name[:40]}' is no name of a baseline", "letters, digits, '.', '_' and '-'")
    return folder / f"{name}.json"


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
