"""A job checked for a door, in a process of its own: `python aprendiz/worker/__main__.py --check OUTPUT`, values on stdin.

`--estimate PICTURES` in place of it tells what a job with so many pictures comes to, without looking at any: {"lines": [...],
"wanted": bytes of the device that a step takes as the settings have it}.

The answer is the last line of stdout, JSON; of a check {"problems": [{template, fields, where, warning, text}], "forecast"}.
Texts are in the language of the process. Nothing is written.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..errors import AprendizError, Problem
from ..settings import Job


def main(arguments: list[str]) -> int:
    """Check the job on stdin, or estimate what it comes to; 0 whatever is found."""
    values = json.loads(sys.stdin.buffer.read().decode("utf-8"))
    if arguments[0] == "--estimate":
        return answer(estimate(values, int(arguments[1])))
    return answer(check(values, Path(arguments[1])))


def estimate(values: dict[str, Any], pictures: int) -> dict[str, Any]:
    """What is known of time and memory; no more than that nothing is, where the job has problems."""
    from .. import foresight
    try:
        found = foresight.foresee(Job.read(values), pictures)
    except AprendizError:
        return {"lines": [], "wanted": None}  # `check` tells of them
    return {"lines": found.lines(), "wanted": found.wanted}


def check(values: dict[str, Any], output: Path) -> dict[str, Any]:
    """What is wrong with a job as it would be written into `output`, and what its pictures come to; `estimate` tells the rest."""
    forecast: dict[str, Any] = {}
    try:
        job = Job.read(values)
    except AprendizError as error:
        problems: Sequence[Problem] = error.problems
    else:
        from ..check import check
        found = check(job, output)
        problems = found.problems
        if found.report is not None:
            told = found.report.forecast
            forecast = {"pictures": told.pictures, "steps": told.steps, "epochs": told.epochs, "seconds": told.seconds,
                        "disk_bytes": told.cache_bytes + told.checkpoint_bytes,
                        "lines": told.lines()}
    return {"problems": [plain(problem) for problem in problems], "forecast": forecast}


def answer(told: dict[str, Any]) -> int:
    """Write the answer as the last line."""
    sys.stdout.buffer.write(("\n" + json.dumps(told, ensure_ascii=False, default=str) + "\n").encode())
    sys.stdout.flush()
    return 0


def plain(problem: Problem) -> dict[str, Any]:
    """A problem as JSON has it, with its sentence in the person's language."""
    return {**asdict(problem), "text": str(problem)}
