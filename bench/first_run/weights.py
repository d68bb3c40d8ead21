"""`python -m bench.first_run.weights FOLDER...`: artifacts' weight files as holes behind their own headers."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HEADERS, SIZES = "headers", "sizes.json"


def restore(folder: Path) -> int:
    """Writes the weight files of `folder`/artifact, which take no disk; their bytes in all."""
    weights = folder / "artifact" / "weights"
    weights.mkdir(exist_ok=True)
    sizes: dict[str, int] = json.loads((folder / SIZES).read_text())
    for name, size in sizes.items():
        with (weights / name).open("wb") as file:
            file.write((folder / HEADERS / name).read_bytes())
            file.truncate(size)
    return sum(sizes.values())


if __name__ == "__main__":
    for word in sys.argv[1:]:
        print(f"{word}: {restore(Path(word)) / 1e9:.1f} GB of holes")
