"""The quick start: the embedded base learns to draw a fish, which it has never seen, from pictures drawn on the spot. No network.

Its settings keep what the base could do (prior preservation); the measured figures are in `docs/micro.md`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .run import Run
from .settings import Job

SUBJECT = "fish"
NAME = "quickstart"
PICTURES = 32


def quickstart_job(out: Path) -> Job:
    """Write the captioned pictures into `out`; the job that teaches them. Raises RunError where that fails."""
    from .files import disk_errors
    from .micro.pictures import write_pictures
    folder = out.absolute() / f"{NAME}-pictures"
    with disk_errors(folder):
        write_pictures(folder, SUBJECT, PICTURES)
    return Job.read(settings(folder))


def measure(run: Run, on_step: Callable[[int, int], None] | None = None) -> None:
    """Have pictures of the base and of what was learned judged, same prompts and seeds; the figures go into the report."""
    from . import devices
    from .evaluate.report import write_report
    from .evaluate.scores import compare, judge, scorer_for
    from .formats import checkpoint
    from .generate import with_loras
    from .prepare import place
    job = run.job()
    device = devices.device(job.training.device)
    base = checkpoint.open_base(job.base, devices.precision(job.training, device))
    place(base, device, encoders=True, network=True)
    scorer = scorer_for(base, job)
    if scorer is None:
        return

    def part(number: int) -> Callable[[int, int], None] | None:
        return on_step and (lambda done, total: on_step(number * total + done, 2 * total))

    before = judge(base, scorer, part(0))
    with with_loras(base, [(run.file, 1.0)]):
        after = judge(base, scorer, part(1))
    write_report(run, compare(before, after))


def settings(pictures: Path) -> dict[str, object]:
    """The job's plain values; what is not named has its default."""
    from .micro.pictures import prior_prompts
    return {
        "base": "micro",
        # Latents drawn anew each time stand in for more pictures; with their mean alone the fish came out right less often.
        "data": {"path": str(pictures), "class_word": SUBJECT, "caption_dropout": 0.1, "latent_sampling": "random"},
        "prior": {"pictures": 48, "per_batch": 3, "prompts": [prompt.text for prompt in prior_prompts()]},
        "method": {"name": "lora", "rank": 8, "targets": "all", "train_text_encoder": True},
        "objective": {"noise_offset": 0.2},  # as the base was made
        "optimizer": {"learning_rate": 4e-3, "schedule": "linear", "warmup_steps": 20, "final_rate": 0.1},
        "training": {"steps": 300, "batch_size": 8, "save_every_steps": 150},
        "samples": {"sample_prompts": ["a large red fish on a white background", "a large blue fish on a yellow background",
                                       "a large green fish on a pink background", "a green circle on a white background"],
                    "sample_every_steps": 150, "guidance": 4.0},
        "output": {"name": NAME},
    }
