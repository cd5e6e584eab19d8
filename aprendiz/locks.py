"""Locks of the operating system: held while a process lives, however it ends. A pid is no proof of life on Windows.

A run's folder has one (`lock`); each device has one in the user's data folder, with a queue before it. Standard library only:
hosts import this.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from .files import disk_errors, home

POLL = 0.25  # seconds between two looks at a lock that another process holds
PROBE = 2.0  # seconds of patience with somebody who only looked whether the lock is held


class FileLock:
    """An exclusive lock on a file, which is made if need be and never removed."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._handle: int | None = None

    @property
    def held(self) -> bool:
        """Whether this object holds it."""
        return self._handle is not None

    def take(self, patience: float = 0.0) -> bool:
        """Take the lock, trying for `patience` seconds; False if another has it. Raises OSError where the file cannot be made."""
        until = time.monotonic() + patience
        while not self._try():
            if time.monotonic() >= until:
                return False
            time.sleep(0.05)
        return True

    def _try(self) -> bool:
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _lock(handle)
        except OSError:
            os.close(handle)
            return False
        self._handle = handle
        return True

    def release(self) -> None:
        """Let go of it, if it is held."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        # Locks on Windows are mandatory for the bytes they cover; this byte is far behind any content.
        os.lseek(handle, 1 << 30, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _lock(handle: int) -> None:
        # flock belongs to this open file: looking at the lock from the same process neither succeeds nor drops it.
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(file: Path) -> bool:
    """Whether some process holds this lock."""
    if not file.exists():
        return False
    lock = FileLock(file)
    try:
        if lock.take():
            lock.release()
            return False
    except OSError:  # a folder that may be read and not written: nobody of this user can hold it
        return False
    return True


def lock_name(device: str) -> str:
    """A device as its lock is called: 'cuda' is the first card, whatever else it is called."""
    return f"{device}:0" if device in ("cuda", "xpu") else device


def holder_of(device: str) -> Path | None:
    """The folder of the run that holds a device; None where nobody does, or one that is no run."""
    folder = _place(device)
    try:
        told = (folder / "holder").read_text(encoding="utf-8") if is_locked(folder / "lock") else ""
    except (OSError, ValueError):
        return None
    return Path(told) if told else None


def is_wanted(device: str) -> bool:
    """Whether somebody holds a device or waits for it."""
    folder = _place(device)
    return is_locked(folder / "lock") or any(is_locked(ticket) for ticket in folder.glob("*.ticket"))


@contextmanager
def devices_locked(devices: Sequence[str], waiting: Callable[[int], None], holder: str = "") -> Iterator[None]:
    """Hold devices (`cpu`, `cuda:0`), in the order in which runs came. Raises RunError where the user's data folder is of no use.

    While others are before this one, `waiting(how many)` is called again and again; it may raise to leave the queue. holder: a
    run's folder, for those who wait.
    """
    with ExitStack() as stack:
        for device in sorted({lock_name(device) for device in devices}):
            stack.enter_context(_device_locked(device, waiting, holder))
        yield


def _place(device: str) -> Path:
    return home() / "devices" / re.sub(r"[^a-z0-9]+", "-", lock_name(device).lower())


@contextmanager
def _device_locked(device: str, waiting: Callable[[int], None], holder: str) -> Iterator[None]:
    folder = _place(device)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        ticket = _draw_ticket(folder)
    lock = FileLock(folder / "lock")
    try:
        while True:
            ahead = _ahead(ticket.file)
            if ahead == 0 and lock.take():
                break
            waiting(max(ahead, 1))
            time.sleep(POLL)
    finally:
        ticket.release()
        with suppress(OSError):
            ticket.file.unlink()
    with suppress(OSError):  # who does not read it waits all the same
        (folder / "holder").write_text(holder, encoding="utf-8")
    try:
        yield
    finally:
        lock.release()


def _draw_ticket(folder: Path) -> FileLock:
    """A place in the queue: a file whose name sorts by time, locked while its owner lives."""
    while True:
        ticket = FileLock(folder / f"{time.time_ns():020d}-{secrets.token_hex(4)}.ticket")
        # Another may clear the file away as stale before it is locked; then a new one is drawn.
        if ticket.take(PROBE) and ticket.file.exists():
            return ticket
        ticket.release()


def _ahead(mine: Path) -> int:
    """How many living tickets come before mine; dead ones are cleared away."""
    count = 0
    for file in mine.parent.glob("*.ticket"):
        if file.name < mine.name and is_locked(file):
            count += 1
        elif file.name < mine.name:
            with suppress(OSError):
                file.unlink()
    return count
