"""Files that are whole or not there, and the folder of the user's own data.

Everything is written under a temporary name in the same folder and then renamed, so that a reader, a crash or a full disk never
meets half a file. Standard library only: hosts import this.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import RunError

FULL = {errno.ENOSPC, errno.EDQUOT}
PATIENCE = 5.0  # seconds for which a rename is tried again: on Windows a virus scanner or a reader may hold the file


def home() -> Path:
    """The folder of the user's own data (device locks, the list of output folders); `APRENDIZ_HOME` moves it."""
    if os.environ.get("APRENDIZ_HOME"):
        return Path(os.environ["APRENDIZ_HOME"])
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "aprendiz"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Application Support" / "aprendiz"
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "aprendiz"


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what a disk refuses while `path` is written into a RunError that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise RunError("The disk is full, so {file} could not be written. Free some space there and start the same job "
                           "again: it goes on from its last good state.", file=str(path)) from error
        raise RunError("{file} cannot be written: {reason}. Choose another folder with --out, or change its permissions.",
                       file=str(path), reason=error.strerror or str(error)) from error


def temporary_name(file: Path) -> Path:
    """A name beside `file` under which it can be written before it takes its place; ends in `.tmp`."""
    return file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")


def write_atomically(file: Path, data: bytes) -> None:
    """Write `data` as `file`, replacing an older one; at no moment is there half a file. Raises RunError."""
    temporary = temporary_name(file)
    with disk_errors(file):
        try:
            # open() follows the umask, which mkstemp does not: results have normal permissions.
            with open(temporary, "wb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            move_into_place(temporary, file)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise


def write_json(file: Path, value: Any) -> None:
    """Write a value as readable JSON, atomically. Raises RunError."""
    write_atomically(file, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def move_into_place(temporary: Path, file: Path) -> None:
    """Rename a file, replacing an older one, or a folder; tried again for seconds where somebody holds it. Raises OSError."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            return os.replace(temporary, file)
        except PermissionError:
            if time.monotonic() > until or file.is_dir():  # no folder is ever replaced, which Windows says in these words, too
                raise
            time.sleep(0.05)
