"""One attempt at a run, from its lock to its last event: what the worker process and the command line both do.

The run's lock is taken first, so that every door sees the attempt at once; then torch is imported and training begins. However it
ends, the last event says so.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..errors import AprendizError, DeviceError, Problem, RunError, TrainingError
from ..files import disk_errors
from ..run import Run, Stopped
from .messages import LOG_HEAD

logger = logging.getLogger(__name__)

PACKAGES = {"PIL": "pillow", "yaml": "pyyaml", "cv2": "opencv-python"}  # what installs a module of another name


class Bug(Exception):
    """Our own fault, and the log that holds its traceback."""

    def __init__(self, log: Path, error: BaseException) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.log = log


def attempt(run: Run) -> Path:
    """Train a run as this process's work; the result's file. Raises AprendizError, Stopped, KeyboardInterrupt, or our own bug.

    The events `failed` or `stopped` are written before anything is raised.
    """
    try:
        with run.locked(), stopping_signals(run):
            try:
                return _train(run)
            except BaseException as error:
                known = explain(error, run)
                _tell_end(run, error if known is None else known)
                if known is None or known is error:
                    raise
                raise known from error
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def attempt_here(run: Run, show: Callable[[dict[str, Any]], None]) -> Path:
    """An attempt in a process that also talks to a person: `show` is called with every event, the rest goes to the log.

    A run that this process made, and that failed before anything was learned, is removed: what was wrong is told, nothing stays.
    """
    run.listeners.append(show)
    try:
        with libraries_to_log(run.log, begin=run.main):
            return attempt(run)
    except AprendizError as error:
        if run.created and not isinstance(error, TrainingError) and not any(event["event"] == "step" for event in run.events()):
            run.discard()
        raise
    except (Stopped, KeyboardInterrupt):
        raise
    except Exception as error:
        raise Bug(run.log, error) from error
    finally:
        run.listeners.remove(show)


def _train(run: Run) -> Path:
    job = run.job()
    from .. import train  # torch comes with it, after the lock: every door sees the attempt at once
    return train.train(job, run)


def _tell_end(run: Run, error: BaseException) -> None:
    """The last event of an attempt that did not finish. A full disk may take this event too; the raised error still tells."""
    if run.last_event in ("failed", "stopped"):
        return
    try:
        if isinstance(error, (Stopped, KeyboardInterrupt)):
            run.event("stopped", step=run.step)
        elif isinstance(error, AprendizError):
            run.event("failed", problems=error.problems, bug=False, log=run.log)
        else:
            traceback.print_exception(type(error), error, error.__traceback__)
            problem = Problem("Something went wrong inside Aprendiz ({error}). That is a bug of ours; {file} tells where.",
                              {"error": f"{type(error).__name__}: {error}", "file": str(run.log)})
            run.event("failed", problems=[problem], bug=True, log=run.log)
    except RunError as full:
        logger.error("%s", full.problem.english)


def explain(error: BaseException, run: Run) -> AprendizError | None:
    """What a person can do about an error of Python or of a library, None where it is our own bug (or no error at all)."""
    if isinstance(error, AprendizError):
        return error
    text = f"{type(error).__name__}: {error}"
    known = missing_package(error) or too_long(error)
    if known is not None:
        traceback.print_exception(type(error), error, error.__traceback__)
        return known
    if re.search(r"out of memory|MemoryError|can't allocate memory", text):
        return DeviceError("The memory ran out ({reason}). Close other programs that use it, or lower batch_size or resolution, "
                           "then go on with: python -m aprendiz resume {folder}",
                           reason=text.splitlines()[0][:200], folder=str(run.folder))
    full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
    if full or re.search(r"No space left on device|os error 28\b|os error 112\b|StorageFull", text):
        return RunError("The disk is full. Free some space where {folder} is, then go on with: "
                        "python -m aprendiz resume {folder}", folder=str(run.folder))
    return None


def missing_package(error: BaseException) -> RunError | None:
    """What to install where an import failed; None for other errors and for our own modules."""
    if not isinstance(error, ImportError) or str(error.name or "aprendiz").startswith("aprendiz"):
        return None
    module = str(error.name).split(".")[0]
    return RunError("The package {package} is missing or broken ({reason}). Install it with: {python} -m pip install "
                    "{package}", package=PACKAGES.get(module, module), reason=str(error), python=sys.executable)


def too_long(error: BaseException) -> RunError | None:
    """That a path is longer than the system allows; None for other errors."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    path = str(error.filename)
    return RunError("A path is longer than this system allows: {path}. Choose a shorter one.",
                    path=path if len(path) < 80 else f"{path[:40]}...{path[-30:]}")


@contextmanager
def stopping_signals(run: Run) -> Iterator[None]:
    """Ctrl+C, and the system's request to end, stop the run between two steps, saved. A second Ctrl+C does not wait for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []

    def stop(number: int, frame: Any) -> None:
        if asked and run.main:
            raise KeyboardInterrupt
        asked.append(number)
        if run.main:
            run.tell("stop")

    kinds = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGBREAK") if hasattr(signal, name)]
    before = {kind: signal.signal(kind, stop) for kind in kinds}
    try:
        yield
    finally:
        for kind, handler in before.items():
            signal.signal(kind, handler)


@contextmanager
def libraries_to_log(log: Path, begin: bool = True) -> Iterator[None]:
    """Send what this process prints, C libraries included, into a run's log.

    begin: write the line that parts attempts (a host that started this process has written it).
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(1), os.dup(2)]
    with disk_errors(log):
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        if begin:
            os.write(target, f"\n{LOG_HEAD} {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode())
        os.dup2(target, 1)
        os.dup2(target, 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os.dup2(kept[0], 1)
        os.dup2(kept[1], 2)
        for handle in (*kept, target):
            os.close(handle)
