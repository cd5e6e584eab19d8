"""TensorBoard and Weights & Biases, for those who want a run's figures there too: both follow the run's own events."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .errors import Problem

if TYPE_CHECKING:
    from .run import Run
    from .settings import Job

FIGURES = {"step": ("loss", "learning_rate", "pictures_per_second", "memory_gb"), "validation": ("loss",), "score": ("value",)}


def problems(job: Job) -> list[Problem]:
    """The packages that a job's boards need and that are not there."""
    wanted = {"tensorboard": job.training.tensorboard, "wandb": job.training.wandb}
    return [Problem("{name} is set, but the package {name} is not there. Install it with `python -m pip install {name}`, or "
                    "turn it off.",
                    {"name": name}, f"training.{name}") for name, on in wanted.items() if on
            and importlib.util.find_spec(name) is None]


@contextmanager
def boards(job: Job, run: Run) -> Iterator[None]:
    """Follow a run's events while it trains, on the boards that its job asks for."""
    followers: list[Any] = [TensorBoard(run)] if job.training.tensorboard and run.main else []
    followers += [Wandb(run, job)] if job.training.wandb and run.main else []
    run.listeners.extend(follower.tell for follower in followers)
    try:
        yield
    finally:
        for follower in followers:
            run.listeners.remove(follower.tell)
            follower.close()


def figures(event: dict[str, Any]) -> dict[str, float]:
    """The numbers of an event by name: 'step/loss', 'validation/loss', 'score/subject'."""
    kind = event["event"]
    label = f"{kind}/{event['name']}" if kind == "score" else kind
    found = {f"{label}/{name}" if kind != "score" else label: event.get(name) for name in FIGURES.get(kind, ())}
    return {name: value for name, value in found.items() if value is not None}


class TensorBoard:
    """Writes into the run's `tensorboard/` folder."""

    def __init__(self, run: Run) -> None:
        from torch.utils.tensorboard import SummaryWriter
        self.run = run
        self.writer: Any = SummaryWriter(str(run.folder / "tensorboard"))  # type: ignore[no-untyped-call]

    def tell(self, event: dict[str, Any]) -> None:
        """One event of the run."""
        for name, value in figures(event).items():
            self.writer.add_scalar(name, value, event["step"])
        if event["event"] == "sample":
            with Image.open(self.run.folder / event["file"]) as picture:
                self.writer.add_image(f"sample/{event['index']}", np.asarray(picture.convert("RGB")), event["step"],
                                      dataformats="HWC")

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class Wandb:
    """Logs to Weights & Biases; with WANDB_MODE=offline into the run's `wandb/` folder alone.

    No paths of this machine are sent.
    """

    def __init__(self, run: Run, job: Job) -> None:
        import wandb

        from .formats.metadata import job_values
        self.run, self.wandb = run, wandb
        # Its own probe of the machine (host name, folders, command line) stays off.
        private = wandb.Settings(x_disable_meta=True, x_disable_stats=True, disable_git=True, save_code=False, console="off",
                                 silent=True)
        self.board = wandb.init(settings=private, project=os.environ.get("WANDB_PROJECT", "aprendiz"), name=run.name,
                                dir=str(run.folder), id=run.name, resume="allow",
                                config=job_values(job, job.output.captions_in_metadata))

    def tell(self, event: dict[str, Any]) -> None:
        """One event of the run."""
        found: dict[str, Any] = dict(figures(event))
        if event["event"] == "sample":
            found[f"sample/{event['index']}"] = self.wandb.Image(str(self.run.folder / event["file"]), caption=event["prompt"])
        if found:
            self.board.log(found | {"trained/step": event["step"]})

    def close(self) -> None:
        """Send what is left."""
        self.board.finish()
