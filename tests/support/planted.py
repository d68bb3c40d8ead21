"""Bugs planted in copies of kernels, which the kernels' own checks must catch."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from deltart import plugins
from deltart.errors import BuildError

Check = Callable[[Path], bool]  # of an op's folder


def copy_kernels(to: Path) -> None:
    """Copies the kernels of all ops, each in its folder, to where they can be patched."""
    kernels = Path(plugins.__file__).parent
    for path in (path for kind in ("cu", "cuh", "hpp") for path in kernels.glob(f"*/*.{kind}")):
        (to / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, to / path.parent.name)


def is_caught(op: Path, name: str, right: str, wrong: str, passes: Check) -> bool:
    """Whether `passes` fails once `right`, which the file `name` of the op's folder has once, is `wrong` there."""
    source = op / name
    text = source.read_text()
    assert text.count(right) == 1, "the line to break is not where it was"
    source.write_text(text.replace(right, wrong))
    return not passes_check(passes, op)


def passes_check(check: Check, op: Path) -> bool:
    """Whether the op's kernels pass; an error of theirs is a failure."""
    try:
        return check(op)
    except (BuildError, AssertionError, ValueError):  # a deadlock or a divergent call; a write where none belongs
        return False
