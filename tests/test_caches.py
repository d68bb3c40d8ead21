"""The cache folder: where it is, that nobody else can plant what is loaded from it, and what is said when it fails."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltart import caches
from deltart.errors import CacheError

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


@pytest.fixture(autouse=True)
def place(tmp_path: Path) -> Iterator[Path]:
    caches.move(tmp_path / "a" / "b")
    yield tmp_path / "a" / "b"
    caches.move(None)


def test_the_system_says_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    caches.move(None)
    monkeypatch.setenv("XDG_CACHE_HOME", "/x/y")
    assert caches.root() == Path("/x/y/deltart")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/z")
    assert caches.root() == Path("/z/.cache/deltart")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user id without a password entry
    with pytest.raises(CacheError, match="no home folder"):
        caches.root()


def test_it_is_made_for_this_user_alone(place: Path) -> None:
    previous = os.umask(0)
    try:
        made = caches.folder("kernels")
    finally:
        os.umask(previous)
    assert made == place / "kernels"
    assert [stat.S_IMODE(path.stat().st_mode) for path in (place, made)] == [0o700, 0o700]


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777, 0o1777])
@pytest.mark.parametrize("which", ["root", "cache"])
def test_a_folder_that_others_can_write_is_refused(mode: int, which: str, place: Path) -> None:
    made = caches.folder("kernels")
    (place if which == "root" else made).chmod(mode)
    with pytest.raises(CacheError, match="others can write"):
        caches.folder("kernels")


@needs_root
@pytest.mark.parametrize("which", ["root", "cache"])
def test_a_folder_of_another_user_is_refused(which: str, place: Path) -> None:
    made = caches.folder("kernels")
    os.chown(place if which == "root" else made, 12345, 12345)
    with pytest.raises(CacheError, match="of user 12345"):
        caches.folder("kernels")


def test_the_user_may_link_to_it_but_no_cache_is_a_link(place: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    place.parent.mkdir()
    place.symlink_to(tmp_path / "elsewhere")
    assert caches.folder("kernels").is_dir()
    (place / "plans").symlink_to(tmp_path / "elsewhere" / "kernels")
    with pytest.raises(CacheError, match="is a link"):
        caches.folder("plans")


@pytest.mark.parametrize("where", ["/proc/deltart", "/dev/null/deltart", "/dev/null", "/" + "a" * 300])
def test_where_nothing_can_be_written(where: str) -> None:
    caches.move(Path(where))
    with pytest.raises(CacheError, match="DELTART_CACHE"):
        caches.folder("kernels")
