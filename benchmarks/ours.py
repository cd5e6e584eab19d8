"""Our loop, whole: `train.train` on a job, with its events, its meter and its state, in turns. Started by `turns.Loop`."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from aprendiz import train
from aprendiz.run import Run
from aprendiz.settings import Job

from .case import WORD, Case
from .turns import Turns

SETTINGS: dict[str, dict[str, Any]] = {
    "textual_inversion": {"vectors": 1, "initial_words": "square", "trigger": WORD},
    "controlnet": {"control": "other", "condition_source": "files", "caption_dropout": 0.0}}


def main() -> None:
    case = Case.from_arguments()
    of_method = SETTINGS.get(case.method, {"rank": case.rank, "targets": case.targets})
    job = Job.read({
        "method": case.method, "base": case.base, "data": case.pictures, "resolution": case.resolution,
        "batch_size": case.batch_size,
        **of_method, "learning_rate": case.learning_rate, "precision": case.precision,
        "device": "cpu", "steps": 1_000_000, "schedule": "constant", "warmup_steps": 0, "sample_prompts": ["a red square"],
        "sampler_steps": 1, "name": "benchmark"})
    turns = Turns(case.warm_up)
    turns.inside = 0.0
    update = train.update

    def timed(*arguments: Any) -> Any:
        began = time.perf_counter()
        try:
            return update(*arguments)
        finally:
            turns.inside = (turns.inside or 0.0) + time.perf_counter() - began

    train.update = timed
    with tempfile.TemporaryDirectory() as out:
        run = Run.create(Path(out), job, "benchmark")
        run.listeners.append(lambda event: turns.done() if event["event"] == "step" else None)
        with run.locked():
            train.train(run.job(), run)


if __name__ == "__main__":
    main()
