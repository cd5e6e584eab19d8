"""Where files for people go: folders made on the way, and names that are never taken from another file.

Standard library only. How bytes reach the disk whole stands in `aprendiz/files.py`.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from ..files import disk_errors, write_atomically


def write_whole(file: Path, data: bytes) -> Path:
    """Write a file, in place of an older one if there is one, and make the folders above it. Raises RunError."""
    make_folder(file.parent)
    write_atomically(file, data)
    return file


def write_new(file: Path, data: bytes) -> Path:
    """Write a file under its name or, if that is taken, the next free one (name-2.png); the name used. Raises RunError."""
    make_folder(file.parent)
    taken = _reserve(file)
    try:
        write_atomically(taken, data)
    except BaseException:
        taken.unlink(missing_ok=True)
        raise
    return taken


def make_folder(folder: Path) -> Path:
    """Make a folder and what is above it. Raises RunError where that cannot be."""
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


def probe(folder: Path) -> None:
    """Raises RunError if files cannot be written to a folder, or it cannot be made; nothing is made yet."""
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    with disk_errors(folder), tempfile.TemporaryFile(dir=there):
        pass


def next_number(folder: Path, suffix: str) -> int:
    """The number after the highest in a folder of numbered files: 00007.png -> 8."""
    numbers = [int(file.stem) for file in folder.glob(f"*{suffix}") if re.fullmatch(r"\d+", file.stem)]
    return max(numbers, default=0) + 1


def _reserve(file: Path) -> Path:
    """An empty file under the first free name: two programs that write at once get different ones."""
    number = 1
    with disk_errors(file):
        while True:
            candidate = file if number == 1 else file.with_name(f"{file.stem}-{number}{file.suffix}")
            try:
                candidate.open("xb").close()
                return candidate
            except FileExistsError:
                number += 1
