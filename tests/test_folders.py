"""Folders are put in place of nothing but their own kind, and every kill leaves the old one or the new one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from deltart.errors import OutputError
from deltart.folders import recover, remove, staged
from support.toy_kind import TOY, fill, write


def tree(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() if p.is_file() else "" for p in sorted(folder.rglob("*"))}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The tree of each version."""
    folder = tmp_path_factory.mktemp("whole")
    for version in ("old", "new"):
        fill(folder / version, version)
    return {version: tree(folder / version) for version in ("old", "new")}


def test_new_empty_and_linked_outputs(tmp_path: Path, whole: dict[str, dict[str, str]]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    for name in ("new", "empty", "link", "deep/er/new"):
        write(tmp_path / name)
        assert tree(tmp_path / name) == whole["new"]
    assert (tmp_path / "link").is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep", "empty", "link", "new", "real"]


def test_failure_leaves_what_there_was(tmp_path: Path, whole: dict[str, dict[str, str]]) -> None:
    write(tmp_path / "out", "old")
    for error, overwrite in ((KeyboardInterrupt(), True), (OSError(28, "full"), True), (OSError(28, "full"), False)):
        output = tmp_path / ("out" if overwrite else "deep/new")
        with pytest.raises((KeyboardInterrupt, OutputError)), staged(output, TOY, overwrite=overwrite) as folder:
            (folder / "model.onnx").touch()
            raise error
        assert tree(tmp_path / "out") == whole["old"] and [p.name for p in tmp_path.iterdir()] == ["out"]


def test_overwrite_is_asked_for(tmp_path: Path, whole: dict[str, dict[str, str]]) -> None:
    write(tmp_path / "out", "old")
    with pytest.raises(OutputError, match="already in use"):
        write(tmp_path / "out")
    assert tree(tmp_path / "out") == whole["old"]
    write(tmp_path / "out", overwrite=True)
    assert tree(tmp_path / "out") == whole["new"] and [p.name for p in tmp_path.iterdir()] == ["out"]


def foreign(folder: Path) -> None:
    (folder / "marker").write_text("of a web application")


def stranger(name: str) -> Callable[[Path], None]:
    def add(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("precious")

    return add


def linked_weights(folder: Path) -> None:
    (folder / "weights" / "w.bin").rename(folder.parent / "w.bin")
    (folder / "weights").rmdir()
    (folder / "weights").symlink_to("..")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (foreign, "is not a toy"),
        (lambda folder: (folder / "marker").write_bytes(b"\xff"), "is not a toy"),
        (lambda folder: (folder / "marker").unlink(), "is not a toy"),
        (lambda folder: ((folder / "marker").unlink(), (folder / "marker").mkdir()), "is not a toy"),
        (stranger("notes.txt"), "did not write: notes.txt"),
        (stranger("src/main.py"), "did not write: src/"),
        (stranger("weights/mine.txt"), "did not write: weights/mine.txt"),
        (stranger("weights/deep/w.bin"), "did not write: weights/deep/"),
        (stranger("engine/rtx/notes"), "did not write: engine/rtx/notes"),
        (stranger(".git/config"), "did not write: .git/"),
        (stranger(".out.partial-0123abcd/notes"), "did not write: .out.partial-0123abcd/"),
        (lambda folder: (folder / "empty").mkdir(), "did not write: empty/"),
        (lambda folder: (folder / "w.onnx").mkdir(), "did not write: w.onnx/"),
        (linked_weights, "did not write: weights$"),
    ],
)
def test_what_is_not_ours_stays(tmp_path: Path, damage: Callable[[Path], None], words: str) -> None:
    output = tmp_path / "out"
    fill(output, "old")
    damage(output)
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    for act in (lambda: write(output, overwrite=True), lambda: remove(output, TOY)):
        with pytest.raises(OutputError, match=words.removesuffix("$")):
            act()
        assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


@pytest.mark.parametrize("use", ["exchange", "no exchange", "inside"])
def test_what_comes_while_it_works_stays(tmp_path: Path, use: str, monkeypatch: pytest.MonkeyPatch) -> None:
    arrange(monkeypatch, use)
    for overwrite in (False, True):
        output = tmp_path / str(overwrite)
        if overwrite:
            fill(output, "old")
        with pytest.raises(OutputError), staged(output, TOY, overwrite=overwrite) as folder:
            (folder / "marker").write_text("ours new")
            output.mkdir(exist_ok=True)
            (output / "precious").write_text("x")
        assert (output / "precious").exists() and (output / "model.onnx").exists() is overwrite
    assert len(list(tmp_path.iterdir())) == 2


def arrange(monkeypatch: pytest.MonkeyPatch, use: str) -> None:
    if use == "no exchange":  # as on file systems without it
        monkeypatch.setattr("deltart.renames.exchange", lambda one, other: False)
    if use == "inside":  # as on a mount point
        monkeypatch.setattr("deltart.folders.place_of", lambda target: target if target.is_dir() else target.parent)


@pytest.mark.parametrize(
    "place", ["itself", "parent", "parent by a link", "inside", "home", "cwd", "above cwd", "file by a link"]
)
def test_never_what_something_depends_on(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    output, source = tmp_path / "out", tmp_path / "source"
    if place in ("itself", "parent", "parent by a link"):
        source = output if place == "itself" else output / "weights"
    if place == "inside":
        output = source / "weights"
    fill(output, "old")
    source.mkdir(exist_ok=True)
    if place == "home":
        monkeypatch.setenv("HOME", str(output))
    if "cwd" in place:
        monkeypatch.chdir(output if place == "cwd" else output / "weights")
    if place == "file by a link":
        (source / "w.bin").symlink_to("../out/weights/w.bin")
    if place == "parent by a link":
        (tmp_path / "alias").symlink_to("out")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match=r"is or contains|contains .* a file of|is inside"):
        write(tmp_path / "alias" if place == "parent by a link" else output, overwrite=True, sources=[source])
    assert tree(tmp_path) == before


def test_hard_links_are_no_obstacle(tmp_path: Path, whole: dict[str, dict[str, str]]) -> None:
    fill(tmp_path / "out", "old")
    (tmp_path / "source").mkdir()
    os.link(tmp_path / "out" / "weights" / "w.bin", tmp_path / "source" / "w.bin")
    write(tmp_path / "out", overwrite=True, sources=[tmp_path / "source"])
    assert tree(tmp_path / "out") == whole["new"] and (tmp_path / "source" / "w.bin").read_text() == "old"


@pytest.mark.parametrize("role", ["home", "cwd"])
def test_an_empty_folder_in_use_is_filled_in_place(
    tmp_path: Path, role: str, whole: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    before = output.stat().st_ino
    monkeypatch.chdir(output) if role == "cwd" else monkeypatch.setenv("HOME", str(output))
    write(Path(".") if role == "cwd" else output)
    assert tree(output) == whole["new"] and output.stat().st_ino == before


@contextmanager
def mounted(at: Path, *arguments: str) -> Iterator[Path]:
    at.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(at)], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"mounting is not allowed here: {done.stderr.strip()}")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


@pytest.mark.parametrize("bind", [False, True])
def test_mount_points(tmp_path: Path, bind: bool, whole: dict[str, dict[str, str]]) -> None:
    (tmp_path / "elsewhere").mkdir()
    arguments = ["--bind", str(tmp_path / "elsewhere")] if bind else ["-t", "tmpfs", "-o", "size=1m", "tmpfs"]
    with mounted(tmp_path / "a b", *arguments) as mount:  # /proc/self/mountinfo escapes the space
        (mount / "lost+found").mkdir()
        write(mount, "old")
        write(mount, "new", overwrite=True)
        assert tree(mount) == {"lost+found": ""} | whole["new"]
        with pytest.raises(OutputError), staged(mount, TOY, overwrite=True) as folder:
            (folder / "marker").write_bytes(b"x" * (2 << 20))
            raise OSError(28, "as where there is room for this")
        assert tree(mount) == {"lost+found": ""} | whole["new"]


def test_a_mount_inside_is_somebody_elses(tmp_path: Path) -> None:
    """As a container does that mounts the checkpoint over the artifact's weights."""
    fill(tmp_path / "out", "old")
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "w.bin").write_text("precious")
    with mounted(tmp_path / "out" / "weights", "--bind", str(tmp_path / "checkpoint")):
        for act in (lambda: write(tmp_path / "out", overwrite=True), lambda: remove(tmp_path / "out", TOY)):
            with pytest.raises(OutputError, match="contains the mount point"):
                act()
    assert (tmp_path / "checkpoint" / "w.bin").read_text() == "precious"


SCRIPT = """
import os, shutil, sys
from pathlib import Path
from deltart import folders, renames
from support.toy_kind import write
left, use = int(sys.argv[2]), sys.argv[3]
def counted(call):
    def act(*arguments, **options):
        global left
        left -= 1
        if left < 0:
            os._exit(9)
        return call(*arguments, **options)
    return act
if use == "no exchange":
    renames.exchange = lambda one, other: False
if use == "inside":
    folders.place_of = lambda target: target
os.rename, shutil.rmtree = counted(os.rename), counted(shutil.rmtree)
renames.exchange, renames.rename_new = counted(renames.exchange), counted(renames.rename_new)
write(Path(sys.argv[1]), "new", overwrite=True)
"""


@pytest.mark.parametrize("use", ["exchange", "no exchange", "inside"])
def test_every_kill_leaves_the_old_one_or_the_new_one(
    tmp_path: Path, use: str, whole: dict[str, dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At every rename and removal. Without an exchange, after the next run has looked."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    arrange(monkeypatch, use)
    kills, seen = 0, set()
    while True:
        parent = tmp_path / f"{kills}"
        output = parent / "out"
        fill(output, "old")
        command = [sys.executable, "-c", SCRIPT, str(output), str(kills), use]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode in (0, 9), done.stderr
        if use != "exchange":
            recover(output, TOY)
        found = {name: text for name, text in tree(output).items() if ".partial-" not in name}
        assert found in whole.values(), f"{kills}: {sorted(found)}"
        seen.add(found["marker"])
        if done.returncode == 0:
            break
        write(output, "new", overwrite=True)
        assert tree(output) == whole["new"] and [p.name for p in parent.iterdir()] == ["out"]
        kills += 1
    assert kills >= 6 and seen == {"ours old", "ours new"}
