"""The resumable state of a run: written whole under a temporary name, read back, then given its own name.

`checkpoints/step-000200/` holds `state.safetensors` (masters, optimizer, moving average) and `state.json` (step, best so
far, thread count, versions, plain numbers of the optimizer, the digest of the tensors). Step 200 means: 200 steps are done,
the next is number 200 counted from 0. Nothing is pickled.
"""

from __future__ import annotations

import json
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import __version__
from .errors import AprendizError, RunError
from .files import move_into_place, write_atomically
from .formats.container import file_hash
from .formats.weights import Weights, open_weights, write_tensors

TENSORS = "state.safetensors"


@dataclass
class State:
    """Everything that a run needs to go on, on the CPU."""

    step: int
    tensors: dict[str, Tensor]
    plain: dict[str, Any] = field(default_factory=dict)


def versions() -> dict[str, Any]:
    """What a bit-identical resume depends on besides the state."""
    return {"aprendiz": __version__, "torch": torch.__version__, "python": platform.python_version(),
            "threads": torch.get_num_threads()}


def write(checkpoints: Path, state: State, keep: int) -> Path:
    """Save a state; the `keep` newest stay. Raises RunError where the disk does not take it, leaving the older ones.

    It takes no more memory than its largest tensor: states of whole networks are large.
    """
    name = f"step-{state.step:06d}"
    folder, temporary = checkpoints / name, checkpoints / f".{name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    if _is_there(folder, state):  # saved a moment ago, and never taken away to be written again
        return folder
    try:
        _write(temporary, state)
        if folder.exists():
            shutil.rmtree(folder)
        move_into_place(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # of a disk that is full: what is there of it is of no use
    for old in saved(checkpoints)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _write(folder: Path, state: State) -> None:
    folder.mkdir(parents=True)
    file = folder / TENSORS
    write_tensors(file, state.tensors, {})
    if not _same(open_weights(file), state.tensors):
        raise RunError("The saved state in {folder} reads back differently from what was written. Check the disk.",
                       folder=str(folder.parent))
    text = json.dumps({"step": state.step, "plain": state.plain, "versions": versions(), "sha256": file_hash(file)})
    write_atomically(folder / "state.json", text.encode())


def saved(checkpoints: Path) -> list[Path]:
    """The states there are, oldest first."""
    return sorted((folder for folder in checkpoints.glob("step-*") if folder.is_dir()), key=lambda folder: int(folder.name[5:]))


def latest(checkpoints: Path) -> State | None:
    """The newest state that is whole, or None."""
    for folder in reversed(saved(checkpoints)):
        state = read(folder)
        if state is not None:
            return state
    return None


def _told(folder: Path) -> dict[str, Any]:
    """What was written beside a state's tensors. Raises OSError or ValueError where they are not those that it tells of."""
    told: dict[str, Any] = json.loads((folder / "state.json").read_text(encoding="utf-8"))
    if told["sha256"] != file_hash(folder / TENSORS):
        raise ValueError("another file")
    return told


def _is_there(folder: Path, state: State) -> bool:
    try:
        _told(folder)
        return _same(open_weights(folder / TENSORS), state.tensors)
    except (OSError, ValueError, AprendizError):
        return False


def read(folder: Path) -> State | None:
    """The state in a folder; None where it is not whole."""
    try:
        told = _told(folder)
        kept = open_weights(folder / TENSORS)
        tensors = {name: kept.read(name) for name in kept.places}
    except (OSError, ValueError, AprendizError):
        return None
    return State(told["step"], tensors, {**told["plain"], "versions": told["versions"]})


def _same(kept: Weights, tensors: dict[str, Tensor]) -> bool:
    """Whether a file holds these tensors, bit for bit (numbers that are none too)."""
    def bits(tensor: Tensor) -> Tensor:
        return tensor.contiguous().reshape(-1).view(torch.uint8)

    return set(kept.places) == set(tensors) and all(
        kept.shapes[name] == tuple(tensor.shape) and torch.equal(bits(kept.read(name)), bits(tensor))
        for name, tensor in tensors.items())
