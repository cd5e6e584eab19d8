"""The quick start: the embedded base learns to draw a fish, which it has never seen, from pictures drawn on the spot. No network.

Its settings keep what the base could do (prior preservation); the measured figures are in `docs/micro.md`.
"""

from __future__ import annotations

from pathlib import Path

from .settings import Job

SUBJECT = "fish"
NAME = "quickstart"


def quickstart_job(out: Path) -> Job:
    """Write the pictures with their captions into `out`, and give the job that teaches them. Raises RunError where that fails."""
    from .files import disk_errors
    from .micro.pictures import write_pictures
    folder = out.absolute() / f"{NAME}-pictures"
    with disk_errors(folder):
        write_pictures(folder, SUBJECT)
    return Job.read(settings(folder))


def settings(pictures: Path) -> dict[str, object]:
    """The job's plain values; what is not named has its default."""
    return {
        "base": "micro",
        "data": {"path": str(pictures), "class_word": SUBJECT},
        "prior": {"pictures": 48, "per_batch": 3},
        "method": {"name": "lora", "rank": 8, "targets": "all"},
        "optimizer": {"learning_rate": 4e-3},
        "training": {"steps": 350, "batch_size": 8, "save_every_steps": 100},
        "samples": {"sample_prompts": ["a large red fish on a white background", "a small blue fish on a yellow background",
                                       "a green circle on a white background"],
                    "sample_every_steps": 100, "guidance": 4.0},
        "output": {"name": NAME},
    }
