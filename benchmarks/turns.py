"""Loops that take turns: each in a process of its own, one of them at work while the others wait, so that noise meets all alike.

The process that measures writes a number of steps to a loop's standard input; the loop does them and answers with a line of
JSON: seconds, processor_seconds, inside_seconds (of the training step itself, where the loop tells it apart). At the input's end
it is gone. Memory is what the system tells of the process: resident, and its own (anonymous) part without mapped files.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LOOK_SECONDS = 0.02  # between looks at a process's memory


@dataclass(frozen=True)
class Turn:
    """What one turn took. Memory in MiB: the most that was there while its steps were done."""

    steps: int
    seconds: float
    processor_seconds: float
    inside_seconds: float | None = None
    resident_mib: float = 0.0
    own_mib: float = 0.0

    @property
    def rate(self) -> float:
        """Steps a second."""
        return self.steps / self.seconds


class Turns:
    """The loop's side. `done` is called after every step, and returns when the next one may begin."""

    def __init__(self, warm_up: int) -> None:
        self.left = self.steps = warm_up
        self.inside: float | None = None
        # Libraries print; the answers go where standard output was.
        self.out = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
        self._begin()

    def done(self) -> None:
        self.left -= 1
        if self.left:
            return
        turn = Turn(self.steps, time.perf_counter() - self.wall, time.process_time() - self.processor, self.inside)
        print(json.dumps(asdict(turn)), file=self.out, flush=True)
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        self.left = self.steps = int(line)
        self._begin()

    def _begin(self) -> None:
        self.inside = None if self.inside is None else 0.0
        self.wall, self.processor = time.perf_counter(), time.process_time()


class Loop:
    """The side of the process that measures: a loop started, warmed up and waiting."""

    def __init__(self, arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, *arguments], cwd=ROOT, env={**os.environ, **environment}, stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, encoding="utf-8")
        self.log = log
        self.warm_up = self._answer()

    def turn(self, steps: int) -> Turn:
        """Let it do so many steps."""
        assert self.process.stdin
        self.process.stdin.write(f"{steps}\n")
        self.process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End it."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(30)

    def _answer(self) -> Turn:
        assert self.process.stdout
        seen = {"resident_mib": 0.0, "own_mib": 0.0}
        over = threading.Event()
        watch = threading.Thread(target=_watch, args=(self.process.pid, seen, over), daemon=True)
        watch.start()
        line = self.process.stdout.readline()
        over.set()
        watch.join()
        if not line:
            said = self.log.read_text(encoding="utf-8", errors="replace")
            raise RuntimeError(f"a loop ended before its time:\n{said[-4000:]}")
        told: dict[str, Any] = json.loads(line)
        return Turn(**{**told, **seen})


def _watch(process: int, seen: dict[str, float], over: threading.Event) -> None:
    """Keep the largest memory that a process had."""
    names = {"VmRSS": "resident_mib", "RssAnon": "own_mib"}
    while True:
        try:
            lines = Path(f"/proc/{process}/status").read_text(encoding="ascii").splitlines()
        except OSError:  # gone, or a system that tells it elsewhere
            return
        for line in lines:
            name, _, value = line.partition(":")
            if name in names:
                seen[names[name]] = max(seen[names[name]], int(value.split()[0]) / 1024)
        if over.wait(LOOK_SECONDS):
            return
