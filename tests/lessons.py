"""Runs in this process, for tests: small jobs on micro or on a miniature written to disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from aprendiz.run import Run, Stopped
from aprendiz.settings import Job
from aprendiz.train import train

QUICK = {"method": "lora", "steps": 4, "batch_size": 2, "sampler_steps": 2, "sample_prompts": ["a fish"], "learning_rate": 1e-3,
         "name": "taught"}
SMALL = {"lora": {"rank": 4}, "pivotal": {"rank": 4}}  # what makes a method quick


def pictures(folder: Path, count: int = 4, size: tuple[int, int] = (128, 128)) -> Path:
    """Plain pictures with captions, each of another colour."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        picture = Image.new("RGB", size, (40 * i % 256, 200 - 30 * i % 200, 90))
        picture.paste((250, 250, 30 * i % 256), (10 + 8 * i, 20, 60 + 8 * i, 90))
        picture.save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"a red square, number {i}, small", encoding="utf-8")
    return folder


def teach(out: Path, data: Path, stop_at: int | None = None, **settings: Any) -> Run:
    """Run a job until its end, or until told to stop after a step; its run."""
    small = SMALL.get(settings.get("method", "lora"), {})
    job = Job.read({**QUICK, **small, "base": "micro", "data": str(data), **settings})
    run = Run.create(out, job, str(data.name))
    if stop_at is not None:
        run.listeners.append(lambda event: run.tell("stop") if event["event"] == "step" and event["step"] == stop_at else None)
    with run.locked():
        try:
            train(run.job(), run)
        except Stopped:
            assert stop_at is not None
    return run


def losses(run: Run) -> list[float]:
    """The loss of each step."""
    return [event["loss"] for event in run.events() if event["event"] == "step"]
