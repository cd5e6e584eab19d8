"""Room for a run before it begins: the computer's memory for its base, the disk for its states."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from .data.preflight import Facts, checkpoint_bytes, free_bytes, in_words
from .errors import Problem, RunError
from .formats import original
from .formats.weights import STEM, Weights, open_folder, open_weights

if TYPE_CHECKING:
    import torch

    from .families import Source
    from .run import Run
    from .settings import Job

OVERHEAD = 1.1  # opening takes a little more than what is kept


def opened_bytes(source: Source, dtype: torch.dtype) -> int:
    """Bytes of a base once it is open: the network and the text encoders in this precision, the VAE in float32."""
    if source.kind != "folder":
        return _bytes(open_weights(source.path), dtype.itemsize)
    total = 0
    for folder in sorted(folder for folder in source.path.iterdir() if folder.is_dir()):
        weights = open_folder(folder, "model" if folder.name.startswith("text_encoder") else STEM)
        total += _bytes(weights, 4 if folder.name == "vae" else dtype.itemsize) if weights else 0
    return total


def _bytes(weights: Weights, each: int) -> int:
    return sum(math.prod(shape) * (4 if name.startswith(original.VAE) else each) for name, shape in weights.shapes.items())


def memory_problems(source: Source, dtype: torch.dtype, free: int | None) -> list[Problem]:
    """Why a base cannot be opened in the computer's memory, if it cannot. free: bytes with swap, None where nobody knows."""
    needed = opened_bytes(source, dtype) * OVERHEAD
    if free is None or needed <= free:
        return []
    told = {"file": source.path.name, "needed": in_words(needed), "free": in_words(free)}
    if dtype.itemsize > 2:
        return [Problem("Opening {file} takes {needed} of the computer's memory, and {free} are free. Close other programs, or "
                        "set precision to bf16, which takes half.", told, "training.precision")]
    return [Problem("Opening {file} takes {needed} of the computer's memory, and {free} are free. Close other programs, or "
                    "choose a smaller base.", told, "base.path")]


def check_disk(run: Run, job: Job, trained: int, steps: int, free: int | None = None) -> None:
    """Raise RunError where the disk will not hold the states and files of a run that trains so many numbers.

    What an earlier attempt left is counted as there. free: bytes; None asks the disk.
    """
    needed = checkpoint_bytes(job.training, steps, Facts(trained_parameters=trained)) - written(run)
    free = free_bytes(run.folder) if free is None else free
    if needed > free:
        raise RunError("The run needs about {needed} in {folder}, and {free} are free. Free some space, choose another folder "
                       "with --out, or save less often.",
                       needed=in_words(needed), folder=str(run.folder), free=in_words(free), where="output")


def written(run: Run) -> int:
    """Bytes of the states and files that are in the run's folder."""
    files: list[Path] = [*run.checkpoints.glob("*/state.safetensors"), *run.folder.glob("*.safetensors")]
    return sum(file.stat().st_size for file in files)
