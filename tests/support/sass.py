"""Machine code as the disassembler prints it: loops, and which loads a wait waits for.

A warp has six scoreboards. An instruction's control bits name the one that it counts up until its result is there, and
those that it waits for to be zero: of several loads on one scoreboard nobody can wait for the first alone.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from deltart.plugins.toolchain import find_nvcc

SECTION = re.compile(r"\.text\.(\w+):")
LABEL = re.compile(r"\s*(\.L_x_\d+):")
LINE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?;)\s*/\* 0x[0-9a-f]{16} \*/")
WORD = re.compile(r"/\* 0x([0-9a-f]{16}) \*/")
BACK = re.compile(r"BRA.*`\((\.L_x_\d+)\)")
NONE = 7  # the scoreboard of an instruction that has none


@dataclass(frozen=True)
class Instruction:
    """One instruction: its text, the scoreboard of its result, and those that it waits for."""

    text: str
    scoreboard: int
    waits: frozenset[int]


Code = list[Instruction | str]  # labels are strings


def nvdisasm() -> Path | None:
    """The disassembler, on PATH or of the PyPI wheel."""
    on_path = shutil.which("nvdisasm")
    wheels = sorted(Path(sysconfig.get_path("purelib")).glob("nvidia/cu*/bin/nvdisasm"))
    return Path(on_path) if on_path else wheels[-1] if wheels else None


def kernels(source: Path, target: str, tool: Path, folder: Path) -> dict[str, Code]:
    """The code of every kernel of `source`, compiled for `target`."""
    cubin = folder / "kernel.cubin"
    command = [str(find_nvcc()), "-std=c++17", "-O3", "-cubin", f"-arch=sm_{target}", "-o", str(cubin), str(source)]
    subprocess.run(command, check=True, capture_output=True)
    text = subprocess.run([str(tool), "-hex", str(cubin)], check=True, capture_output=True, text=True).stdout
    found, code, lines = dict[str, Code](), list[Instruction | str](), iter(text.splitlines())
    for line in lines:
        if section := SECTION.match(line):
            code = found.setdefault(section[1], [])
        elif label := LABEL.match(line):
            code.append(label[1])
        elif instruction := LINE.match(line):
            second = WORD.search(next(lines))
            assert second is not None, line
            control = int(second[1], 16) >> 41
            waits = frozenset(board for board in range(6) if control >> 11 + board & 1)
            code.append(Instruction(instruction[1], control >> 5 & 7, waits))
    return found


def loops(code: Code) -> Iterator[list[Instruction]]:
    """The instructions of every loop with tensor-core products."""
    places = {one: place for place, one in enumerate(code) if isinstance(one, str)}
    for place, one in enumerate(code):
        back = BACK.search(one.text) if isinstance(one, Instruction) else None
        if back and places.get(back[1], place) < place:
            body = [each for each in code[places[back[1]] : place + 1] if isinstance(each, Instruction)]
            if any("HMMA" in each.text for each in body):
                yield body


def waited_a_round_later(loop: list[Instruction]) -> list[str]:
    """Loads to registers that a wait in one round finds on their way since the round before."""
    underway: dict[int, list[tuple[int, str]]] = {board: [] for board in range(6)}
    late = []
    for turn in (0, 1):
        for one in loop:
            for board in one.waits:
                late += [load for issued, load in underway[board] if issued < turn]
                underway[board] = []
            if one.scoreboard != NONE and "LDG." in one.text:
                underway[one.scoreboard].append((turn, one.text))
    return late
