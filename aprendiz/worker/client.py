"""A host's side of the worker: start it, follow what it tells, steer it, and say why it died.

    worker = start(run)                      # a process of its own; the host is never blocked
    for event in follow(worker): ...         # until the run has finished, stopped or failed
    run.tell("pause")

Standard library only: hosts import this. The worker is started BY PATH, because embedded Pythons with a `._pth` file ignore the
working directory and PYTHONPATH.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import Problem, RunError
from ..events import read_events
from ..files import disk_errors
from ..run import Run
from .messages import ENDS, LOG_HEAD, PROTOCOL

POLL = 0.2  # seconds between two looks at the events
PROGRAM = Path(__file__).with_name("__main__.py")
LAST_WORDS = 8  # lines of the log that are shown


@dataclass
class Worker:
    """A started worker. begun: where its events begin in events.jsonl, in bytes."""

    run: Run
    process: subprocess.Popen[bytes]
    begun: int

    @property
    def alive(self) -> bool:
        """Whether its process lives."""
        return self.process.poll() is None

    @property
    def silent(self) -> bool:
        """Whether it has not told of an end yet: a state of the run that says so is of the attempt before."""
        return not any(event.get("event") in ENDS for event in read_events(self.run.events_file, self.begun)[0])

    def wait(self, timeout: float | None = None) -> str:
        """Wait for its end; the run's state then. Raises subprocess.TimeoutExpired."""
        self.process.wait(timeout)
        return self.run.state

    def let_go(self) -> None:
        """Cut the lifeline, as the host's end would: the worker saves and stops. Nothing happens to one that keeps running."""
        if self.process.stdin is not None:
            self.process.stdin.close()


def start(run: Run, *, keep_running: bool = False, python: str | None = None) -> Worker:
    """Start a worker for a run and return at once; what was said to earlier workers is forgotten. Raises RunError.

    keep_running: live on when this process ends; otherwise the worker then saves and stops. python: the interpreter; None is
    `APRENDIZ_PYTHON`, else this process's own.
    """
    if run.is_locked:
        raise RunError("{name} is being trained by another process. Follow it with: python -m aprendiz watch {folder}",
                       name=run.name, folder=str(run.folder))
    interpreter = python or os.environ.get("APRENDIZ_PYTHON") or sys.executable
    command = [interpreter, str(PROGRAM), str(run.folder), *([] if keep_running else ["--lifeline"])]
    run.forget_commands()
    with disk_errors(run.log):
        begun = run.events_file.stat().st_size
        log = open(run.log, "ab", buffering=0)
        log.write(f"\n{LOG_HEAD} {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
    try:
        process = _spawn(command, log, detached=keep_running)
    except OSError as error:
        raise RunError("The Python for the worker could not be started: {python} ({reason}). Set APRENDIZ_PYTHON to one that "
                       "has torch and diffusers.", python=interpreter, reason=error.strerror or str(error)) from error
    finally:
        log.close()
    return Worker(run, process, begun)


def _spawn(command: list[str], log: Any, detached: bool) -> subprocess.Popen[bytes]:
    """A process in a group of its own, so that Ctrl+C in the host's terminal does not hit it; its lifeline is its stdin."""
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    stdin = subprocess.DEVNULL if detached else subprocess.PIPE
    if sys.platform != "win32":
        return subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, env=environment, start_new_session=True)
    flags = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.CREATE_NO_WINDOW
    if detached:
        try:
            # Leave the host's job object, which would end with it; not every job allows that.
            return subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, env=environment,
                                    creationflags=flags | subprocess.CREATE_BREAKAWAY_FROM_JOB)
        except OSError:
            pass
    return subprocess.Popen(command, stdin=stdin, stdout=log, stderr=log, env=environment, creationflags=flags)


def follow(followed: Run | Worker, poll: float = POLL) -> Iterator[dict[str, Any]]:
    """Events as they come, until the run has ended. Of a `Run` all from its beginning on, of a `Worker` its own.

    A worker that dies without a word gives a last made-up event `failed` with `dead: true` and what is known of why.
    """
    worker = followed if isinstance(followed, Worker) else None
    run = followed.run if isinstance(followed, Worker) else followed
    offset = worker.begun if worker else 0
    last: dict[str, Any] = {}
    ended = False
    while True:
        alive = worker.alive if worker else run.is_locked
        # Looked at after the life was: what a worker wrote before it ended is there.
        events, offset = read_events(run.events_file, offset)
        for event in events:
            ended = event.get("event") in ENDS or (ended and event.get("event") != "queued")
            last = event
            yield event
        if ended and not alive:
            return
        if not alive and (worker or last.get("attempt", 0) > 0 or not last):
            problem = last_words(run, worker.process.returncode if worker else None)
            told = {**asdict(problem), "text": problem.english}
            yield {"v": PROTOCOL, "attempt": last.get("attempt", 0), "time": time.time(), "event": "failed", "dead": True,
                   "bug": False, "log": "log.txt", "problems": [told]}
            return
        time.sleep(poll)


# What the end of a log tells, and what can be done. The first that is found counts.
REMEDIES: tuple[tuple[str, Problem], ...] = (
    (r"CUDA out of memory|HIP out of memory|XPU out of memory|CUBLAS_STATUS_ALLOC_FAILED|MPS backend out of memory",
     Problem("{name} ended because the card's memory ran out. Close other programs that use it, or lower batch_size or "
             "resolution, or set memory to auto.")),
    (r"MemoryError|can't allocate memory|Cannot allocate memory|paging file is too small|bad_alloc|os error 1455",
     Problem("{name} ended because the computer's memory ran out. Close other programs, lower batch_size or resolution, or "
             "enlarge the paging file.")),
    (r"No space left on device|os error 28|os error 112|StorageFull",
     Problem("{name} ended because the disk is full. Free some space there and go on with: python -m aprendiz resume {folder}")),
    (r"driver version is insufficient|NVIDIA driver on your system is too old|no kernel image is available|"
     r"Found no NVIDIA driver|CUDA driver initialization failed|forward compatibility was attempted",
     Problem("{name} ended because the graphics driver and this torch do not fit together. Update the driver, or install the "
             "torch that is made for this card.")),
    (r"CUDA error: (?:unspecified launch failure|an illegal memory access|device-side assert|unknown error|the launch timed out)",
     Problem("{name} ended because the graphics driver failed. Go on with: python -m aprendiz resume {folder} If it comes back, "
             "update the driver.")),
    (r"operator torchvision::nms does not exist",
     Problem("{name} ended because torchvision was made for another torch. Install the two together, or remove torchvision: "
             "nothing here needs it.")),
    (r"DLL load failed|cannot open shared object file|Library not loaded",
     Problem("{name} ended because a library of the system is missing or broken: {words} `python -m aprendiz doctor` tells more; "
             "on Windows install the Microsoft Visual C++ Redistributable.")),
)
MISSING = re.compile(r"ModuleNotFoundError: No module named '([A-Za-z0-9_]+)")
KILLED = (-9, 137, 0xC0000017, 0xC000012D)  # SIGKILL, as Linux does when memory runs out; Windows: no memory, commitment limit


def last_words(run: Run, code: int | None = None) -> Problem:
    """Why a worker died, from the end of its log and its exit code, with the remedy where it is known."""
    lines = _tail(run.log)
    words = " / ".join(lines[-LAST_WORDS:]) or "-"
    shown: dict[str, Any] = {"name": run.name, "words": words, "folder": str(run.folder)}
    text = "\n".join(lines)
    missing = MISSING.search(text)
    if missing:
        return Problem("{name} ended because the package {package} is missing. `python -m aprendiz doctor` says how to install "
                       "it.", {**shown, "package": missing.group(1)})
    for pattern, remedy in REMEDIES:
        if re.search(pattern, text):
            return replace(remedy, fields=shown)
    if code in KILLED:
        return Problem("{name} was ended by the system or by somebody, most often because memory ran out. Close other programs "
                       "and go on with: python -m aprendiz resume {folder}", shown)
    return Problem("{name} ended without a word (exit code {code}; the last lines of its log: {words}). Go on with: "
                   "python -m aprendiz resume {folder}", {**shown, "code": "?" if code is None else code})


def _tail(file: Path, size: int = 8192) -> list[str]:
    """The last lines of a log that are not empty, of its newest attempt."""
    try:
        with open(file, "rb") as handle:
            handle.seek(max(handle.seek(0, os.SEEK_END) - size, 0))
            text = handle.read().decode("utf-8", "replace")
    except OSError:
        return []
    _, head, newest = text.rpartition(LOG_HEAD)
    return [line.rstrip() for line in newest.splitlines()[1 if head else 0:] if line.strip()]
