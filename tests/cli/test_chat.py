"""`deltart chat` with the built-in model: through a pipe, and on a terminal."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from support.signals import restore

COMMAND = [sys.executable, "-m", "deltart", "chat"]
GREEDY = ["--temperature", "0", "--threads", "1"]


def piped(artifact: Path, lines: list[str], *flags: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(artifact), *GREEDY, *flags], input="\n".join(lines) + "\n", capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip


def test_a_pipe_gets_the_answers_alone(nano_artifact: Path, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    first = piped(nano_artifact, ['Type "planet" backwards', f"/save {saved}", "/nonsense", "/save"])
    assert first.returncode == 0 and first.stdout == "tenalp\n"
    assert "no command /nonsense" in first.stderr and "no file named" in first.stderr
    assert [message["role"] for message in json.loads(saved.read_text())] == ["user", "assistant"]
    assert (tmp_path / "talk.json.prefix.safetensors").exists()
    again = piped(nano_artifact, [f"/load {saved}", 'Type "sun" backwards', f"/save {saved}"])
    assert again.stdout == "nus\n"
    assert len(json.loads(saved.read_text())) == 4
    (tmp_path / "broken.json").write_text("{}")
    assert "no saved conversation" in piped(nano_artifact, [f"/load {tmp_path / 'broken.json'}"]).stderr


def test_on_a_terminal(nano_artifact: Path) -> None:
    """Thinking is dim, Ctrl-C ends the reply and not the chat, and the end of input ends it."""
    terminal, side = pty.openpty()
    flags = ["--threads", "1", "--temperature", "0", "--ignore-eos", "--max-new-tokens", "50000"]
    process = subprocess.Popen(
        [*COMMAND, str(nano_artifact), *flags], stdin=side, stdout=side, stderr=side, close_fds=True,
        start_new_session=True, preexec_fn=restore, env=os.environ | {"TERM": "dumb"},
    )  # fmt: skip
    os.close(side)
    try:
        read_until(terminal, "> ")
        os.write(terminal, b'Type "planet" backwards\n')
        shown = read_until(terminal, "tenalp")
        assert "\x1b[2m" in shown and "</think>" not in shown
        process.send_signal(signal.SIGINT)
        read_until(terminal, "[stopped]")
        os.write(terminal, b"/help\n")
        read_until(terminal, "/reset")
        os.write(terminal, b"/quit\n")
        assert process.wait(30) == 0
    finally:
        process.kill()
        os.close(terminal)


def read_until(terminal: int, text: str, seconds: float = 90) -> str:
    shown, end = "", time.monotonic() + seconds
    while text not in shown:
        assert time.monotonic() < end, f"{text!r} did not come; there was {shown[-500:]!r}"
        if select.select([terminal], [], [], 0.2)[0]:
            shown += os.read(terminal, 65536).decode(errors="replace")
    return shown
