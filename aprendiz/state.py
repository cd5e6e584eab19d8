"""The resumable state of a run: written whole under a temporary name, read back, then given its own name.

`checkpoints/step-000200/` holds `state.safetensors` (masters, optimizer, moving average) and `state.json` (step, best so
far, thread count, versions, plain numbers of the optimizer, the digest of the tensors). Step 200 means: 200 steps are done,
the next is number 200 counted from 0. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor

from . import __version__
from .errors import RunError
from .files import move_into_place, write_atomically


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
    """Save a state; the `keep` newest stay. Raises RunError where the disk does not take it, leaving the older ones."""
    name = f"step-{state.step:06d}"
    folder, temporary = checkpoints / name, checkpoints / f".{name}.tmp"
    data = save({tensor: value.contiguous() for tensor, value in state.tensors.items()})
    digest = hashlib.sha256(data).hexdigest()
    text = json.dumps({"step": state.step, "plain": state.plain, "versions": versions(), "sha256": digest})
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    write_atomically(temporary / "state.safetensors", data)
    write_atomically(temporary / "state.json", text.encode())
    if read(temporary) is None:
        raise RunError("The saved state in {folder} reads back differently from what was written. Check the disk.",
                       folder=str(checkpoints))
    if folder.exists():
        shutil.rmtree(folder)
    move_into_place(temporary, folder)
    for old in saved(checkpoints)[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def saved(checkpoints: Path) -> list[Path]:
    """The states there are, oldest first."""
    return sorted(folder for folder in checkpoints.glob("step-*") if folder.is_dir())


def latest(checkpoints: Path) -> State | None:
    """The newest state that is whole, or None."""
    for folder in reversed(saved(checkpoints)):
        state = read(folder)
        if state is not None:
            return state
    return None


def read(folder: Path) -> State | None:
    """The state in a folder; None where it is not whole."""
    try:
        told = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        data = (folder / "state.safetensors").read_bytes()
    except (OSError, ValueError):
        return None
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        return None
    return State(told["step"], load(data), {**told["plain"], "versions": told["versions"]})
