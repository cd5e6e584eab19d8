"""Questions about a job that take a while: each is answered by a process of its own, and pages come again for the answer.

Standard library only: hosts import this.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ..errors import Problem
from ..worker.client import PROGRAM

CHECKS = 4  # of each kind: answers that are kept, and processes at a time
AWAITED = 3.0  # seconds for which whoever asked is taken to come again for the answer: pages ask at least every second


class Questions:
    """What was asked, and what is known by now."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}
        self._lock = threading.Lock()

    def ask(self, values: Mapping[str, Any], arguments: list[str]) -> dict[str, Any]:
        """What the process that was asked this knows, or is asked now; of each kind the older ones make room, unless somebody
        waits for each: then this one is asked once there is room.
        """
        key = question(values, arguments)
        with self._lock:
            known = self._checks.get(key)
            if known is None or known.stale:
                alike = [old for old in self._checks if old != key and old.startswith(f'[["{arguments[0]}"')]
                over = max(0, len(alike) - CHECKS + 1)
                left = [old for old in alike if not self._checks[old].awaited][:over]
                for old in left:
                    self._checks.pop(old).end()
                if len(left) < over:
                    return {"done": False}
                known = self._checks[key] = Check(values, arguments)
            return known.answer()

    def known(self, values: Mapping[str, Any], arguments: list[str]) -> dict[str, Any]:
        """What is known of it by now, without asking: nothing where nobody has."""
        known = self._checks.get(question(values, arguments))
        return known.answer() if known is not None else {}


class Check:
    """One job being looked at by a process of its own; `arguments` say how."""

    def __init__(self, values: Mapping[str, Any], arguments: list[str]) -> None:
        python = os.environ.get("APRENDIZ_PYTHON") or sys.executable
        self._asked = 0.0
        self._heard = time.monotonic()
        self._told: dict[str, Any] | None = None
        try:
            hidden = 0x08000000 if sys.platform == "win32" else 0  # no window of its own
            self._process: subprocess.Popen[bytes] | None = subprocess.Popen(
                [python, str(PROGRAM), *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.PIPE, env={**os.environ, "PYTHONUTF8": "1"}, creationflags=hidden)
        except OSError as error:
            self._process = None
            self._told = failed(error.strerror or str(error))
            return
        threading.Thread(target=self._work, args=(json.dumps(values).encode(),), daemon=True).start()

    def _work(self, data: bytes) -> None:
        assert self._process is not None
        out, wrong = self._process.communicate(data)
        lines = out.decode("utf-8", "replace").strip().splitlines()
        try:
            told = json.loads(lines[-1]) if lines else None
        except ValueError:
            told = None
        words = wrong.decode("utf-8", "replace").strip().splitlines()
        self._told = told or failed(words[-1] if words else str(self._process.returncode))

    def answer(self) -> dict[str, Any]:
        """What is known by now."""
        self._heard = time.monotonic()
        if self._told is not None and not self._asked:
            self._asked = time.monotonic()
        return {"done": True, **self._told} if self._told is not None else {"done": False}

    @property
    def stale(self) -> bool:
        """Whether its answer was fetched a while ago: the folder may have changed since."""
        return bool(self._asked) and time.monotonic() - self._asked > 1.0

    @property
    def awaited(self) -> bool:
        """Whether somebody asked a moment ago, and has no answer yet."""
        return not self._asked and time.monotonic() - self._heard < AWAITED

    def end(self) -> None:
        """Let go of it."""
        if self._process is not None and self._process.poll() is None:
            with suppress(OSError):
                self._process.kill()


def question(values: Mapping[str, Any], arguments: list[str]) -> str:
    """A job and what is asked of it, as one text."""
    return json.dumps([arguments, dict(values)], sort_keys=True, default=str)


def failed(reason: str) -> dict[str, Any]:
    """The answer of a check that could not be made."""
    problem = Problem("The pictures could not be checked ({reason}). `python -m aprendiz doctor` tells what is missing.",
                      {"reason": reason[-300:]})
    return {"problems": [plain(problem)], "forecast": {}}


def plain(problem: Problem) -> dict[str, Any]:
    """A problem as a page has it: where, whether it stops the run, and its sentence in the person's language."""
    return {"where": problem.where, "warning": problem.warning, "text": str(problem)}
