"""Files that appear whole or not at all, and what killed runs leave."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deltart.files import LOCK, clear, link_or_copy, private, replacing, write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_the_old_content(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a", b"old")
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as partial:
        partial.write_bytes(b"ne")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_bytes() == b"old" and names(tmp_path) == ["a"]
    write_atomically(tmp_path / "a", memoryview(b"new"))
    assert (tmp_path / "a").read_bytes() == b"new" and names(tmp_path) == ["a"]


def test_links_are_replaced_not_followed(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("precious")
    for name, victim in (("file", "victim"), ("nothing", "absent"), ("hard", "")):
        path = tmp_path / name
        path.symlink_to(tmp_path / victim) if victim else os.link(tmp_path / "victim", path)
        write_atomically(path, b"report")
        assert path.read_bytes() == b"report" and not path.is_symlink()
    assert (tmp_path / "victim").read_text() == "precious" and not (tmp_path / "absent").exists()


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "precious").touch()
    with pytest.raises(OSError):
        write_atomically(tmp_path / "a", b"report")
    assert names(tmp_path) == ["a"] and names(tmp_path / "a") == ["precious"]


def test_streams_are_written_as_they_are() -> None:
    script = "from pathlib import Path; from deltart.files import write_atomically as w; w(Path('{}'), b'text')"
    for path, printed in (("/dev/stdout", b"text"), ("/dev/null", b"")):
        before = os.lstat(path)
        done = subprocess.run([sys.executable, "-c", script.format(path)], capture_output=True, check=True)
        assert done.stdout == printed and os.path.samestat(before, os.lstat(path))


def test_link_or_copy(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("weights")
    (tmp_path / "alias").symlink_to("source")
    (tmp_path / "target").write_text("old")
    for _ in range(2):  # the second time it is one file already
        link_or_copy(tmp_path / "alias", tmp_path / "target")
        assert os.path.samefile(tmp_path / "source", tmp_path / "target") and not (tmp_path / "target").is_symlink()
    assert names(tmp_path) == ["alias", "source", "target"]


SCRIPT = """
import os, sys
from pathlib import Path
from deltart.files import private
with private(Path(sys.argv[1]), "plan") as holder:
    (holder / "plan").write_text("half")
    if sys.argv[2] == "wait":
        print(holder, flush=True)
        sys.stdin.read()
    os._exit(9)
"""


def child(folder: Path, how: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, str(folder), how]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_what_a_killed_run_left_goes_and_what_a_living_one_has_stays(tmp_path: Path) -> None:
    child(tmp_path, "die").wait()
    assert len(names(tmp_path)) == 1
    living = child(tmp_path, "wait")
    assert living.stdout is not None
    holder = Path(living.stdout.readline().strip())
    write_atomically(tmp_path / "plan", b"whole")
    assert names(tmp_path) == [holder.name, "plan"] and (holder / "plan").read_text() == "half"
    living.kill()
    living.communicate()
    clear(tmp_path, "other")
    assert holder.exists()
    clear(tmp_path)
    assert names(tmp_path) == ["plan"]


def foreign_file(holder: Path) -> None:
    holder.mkdir()
    (holder / "precious").touch()


def foreign_link(holder: Path) -> None:
    foreign_file(holder.parent / "elsewhere")
    (holder.parent / "elsewhere" / LOCK).touch()
    holder.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        (".plan.partial-0123abcd", foreign_file),  # our name, but not our lock
        (".plan.partial-0123abcd", foreign_link),
        (".plan.partial-0123abcd", Path.touch),
        (".plan.partial-7", foreign_file),
        (".plan.partial", foreign_file),
        ("plan.partial-0123abcd", foreign_file),
        (".planet.partial-0123abcd", foreign_file),
    ],
)
def test_what_others_left_stays(tmp_path: Path, name: str, make: Callable[[Path], None]) -> None:
    make(tmp_path / name)
    before = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*"))
    write_atomically(tmp_path / "plan", b"whole")
    clear(tmp_path)
    (tmp_path / "plan").unlink()
    assert sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*")) == before


def test_names_do_not_collide_where_process_ids_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getpid", lambda: 7)
    with private(tmp_path, "plan") as one, private(tmp_path, "plan") as other:
        assert one != other and one.is_dir() and other.is_dir()
    assert not names(tmp_path)
