"""A job checked for a door, in a process of its own: `python aprendiz/worker/__main__.py --check OUTPUT`, values on stdin.

The answer is the last line of stdout, JSON: {"problems": [{template, fields, where, warning, text}], "forecast": {...}}. Texts
are in the language of the process. Nothing is written.
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


def main(output: Path) -> int:
    """Check the job on stdin as it would be written into `output`; 0 whatever is found."""
    values = json.loads(sys.stdin.buffer.read().decode("utf-8"))
    forecast: dict[str, Any] = {}
    try:
        job = Job.read(values)
    except AprendizError as error:
        problems: Sequence[Problem] = error.problems
    else:
        from .. import prepare
        found = prepare.check(job, output)
        problems = found.problems
        if found.report is not None:
            told = found.report.forecast
            forecast = {"pictures": told.pictures, "steps": told.steps, "epochs": told.epochs, "seconds": told.seconds,
                        "disk_bytes": told.cache_bytes + told.checkpoint_bytes, "lines": told.lines()}
    answer = {"problems": [plain(problem) for problem in problems], "forecast": forecast}
    sys.stdout.buffer.write(("\n" + json.dumps(answer, ensure_ascii=False, default=str) + "\n").encode())
    sys.stdout.flush()
    return 0


def plain(problem: Problem) -> dict[str, Any]:
    """A problem as JSON has it, with its sentence in the person's language."""
    return {**asdict(problem), "text": str(problem)}
