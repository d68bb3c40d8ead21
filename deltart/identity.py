"""Which file it was: what tells a weight file from another with the same name, size and header.

Fine-tunes of one model have equal headers, and an artifact keeps links to weights, not copies. Reading all of them at
every start would cost minutes; when the file's number and time say that it is no longer the same, samples do.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deltart.text_files import open_regular

SAMPLES, SAMPLE_BYTES = 256, 4096  # spread evenly over the file


@dataclass(frozen=True)
class Identity:
    """A file's number on its file system, when it was last written (ns since 1970), and the hash of samples of it."""

    inode: int
    mtime_ns: int
    samples_sha256: str

    def written_since(self, file: BinaryIO) -> bool:
        """Whether `file` was written, or is a copy that was, after it was identified; a copy may keep the time."""
        return os.fstat(file.fileno()).st_mtime_ns != self.mtime_ns

    def same_samples(self, file: BinaryIO) -> bool:
        """Whether the samples of `file` are those that were taken."""
        return _samples(file) == self.samples_sha256

    def same_number(self, file: BinaryIO) -> bool:
        """Whether `file` is the very file that was identified, not a copy."""
        return os.fstat(file.fileno()).st_ino == self.inode


def identify(path: Path) -> Identity:
    """The identity of the file at `path`. Raises ConfigError where it can't be read."""
    with open_regular(path) as file:
        found = os.fstat(file.fileno())
        return Identity(found.st_ino, max(found.st_mtime_ns, 0), _samples(file))


def _samples(file: BinaryIO) -> str:
    """SHA-256 of at most SAMPLES pieces of the file, the first and the last included."""
    digest, last = hashlib.sha256(), max(os.fstat(file.fileno()).st_size - SAMPLE_BYTES, 0)
    for number in range(SAMPLES):
        digest.update(os.pread(file.fileno(), SAMPLE_BYTES, last * number // (SAMPLES - 1)))
    return digest.hexdigest()
