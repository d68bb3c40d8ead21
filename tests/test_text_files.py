"""Paths that users name: each kind that can't be read is an error that says which it is, at once."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deltart import text_files
from deltart.errors import ArtifactError
from deltart.text_files import check_folder, lines, read_bytes, read_text


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "pipe")
    return folder / "pipe"


def _loop(folder: Path) -> Path:
    (folder / "loop").symlink_to("loop")
    return folder / "loop"


def _inside_a_file(folder: Path) -> Path:
    (folder / "file").write_text("x")
    return folder / "file" / "below"


UNREADABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "absent": (lambda folder: folder / "absent", "does not exist"),
    "a folder": (lambda folder: folder, "is a folder"),
    "a pipe": (_fifo, "is a pipe or a device"),
    "a device": (lambda folder: Path("/dev/zero"), "is a pipe or a device"),
    "a loop of links": (_loop, "symbolic links"),
    "below a file": (_inside_a_file, "Not a directory"),
    "a name too long": (lambda folder: folder / ("a" * 300), "name too long"),
    "a path too long": (lambda folder: folder / "/".join(["a" * 200] * 30), "name too long"),
    "a zero byte": (lambda folder: folder / "a\0b", "null byte"),
    "half a surrogate pair": (lambda folder: folder / "\ud83d", "surrogates not allowed"),
}


@pytest.mark.parametrize(("make", "words"), UNREADABLE.values(), ids=list(UNREADABLE))
def test_what_is_no_readable_file(make: Callable[[Path], Path], words: str, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=words):
        read_bytes(make(tmp_path), ArtifactError)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_permissions_are_named(tmp_path: Path) -> None:
    (tmp_path / "closed").touch(0)
    with pytest.raises(ArtifactError, match="permission denied"):
        read_bytes(tmp_path / "closed", ArtifactError)


def test_a_size_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_files, "MAX_BYTES", 3)
    (tmp_path / "a").write_bytes(b"abc")
    assert read_bytes(tmp_path / "a") == b"abc"
    (tmp_path / "a").write_bytes(b"abcd")
    with pytest.raises(ArtifactError, match="larger than 3 bytes"):
        read_bytes(tmp_path / "a", ArtifactError)


def test_text_and_lines(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes("\ufeffone\n\n  \nt\u2028wo\r\n".encode())
    assert read_text(tmp_path / "a") == "one\n\n  \nt\u2028wo\r\n"
    assert list(lines((tmp_path / "a").read_bytes(), "a")) == [("a, line 1", "one"), ("a, line 4", "t\u2028wo\r")]
    (tmp_path / "a").write_bytes(b"ab\xff")
    with pytest.raises(ArtifactError, match="byte 0xff at 2"):
        read_text(tmp_path / "a", ArtifactError)


def test_folders(tmp_path: Path) -> None:
    check_folder(tmp_path, ArtifactError, "a folder of plans")
    for make in (UNREADABLE[name][0] for name in ("absent", "a loop of links", "a name too long", "a zero byte")):
        with pytest.raises(ArtifactError, match="a folder of plans"):
            check_folder(make(tmp_path), ArtifactError, "a folder of plans")
    (tmp_path / "file").touch()
    with pytest.raises(ArtifactError, match="is a file"):
        check_folder(tmp_path / "file", ArtifactError, "a folder of plans")
