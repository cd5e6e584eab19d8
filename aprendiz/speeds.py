"""How long steps took on this machine, so that the next run's time can be told before it begins.

One line of JSON a run in the user's data folder (`speeds.jsonl`): the device, what was trained, seconds of a step. A step's time
is taken to grow with its pixels.
"""

from __future__ import annotations

import json
import math
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from .files import home, write_atomically

KEPT = 200  # lines
NEAR = 1.1  # bases whose weights differ by no more than this factor are taken for alike


@dataclass(frozen=True)
class Speed:
    """What a step took. weights: bytes of the base, opened in float32. pixels: of all pictures of a step together."""

    device: str
    method: str
    weights: int
    pixels: int
    seconds: float = 0.0


def file() -> Path:
    """Where they are kept."""
    return home() / "speeds.jsonl"


def known() -> list[Speed]:
    """All that are kept, the newest last; lines that make no sense are left out."""
    found = []
    try:
        lines = file().read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return []
    for line in lines:
        with suppress(ValueError, TypeError):
            one = Speed(**json.loads(line))
            if one.seconds > 0 and one.pixels > 0:
                found.append(one)
    return found


def remember(speed: Speed) -> None:
    """Keep one; that it cannot be written is no reason to fail."""
    with suppress(OSError):
        file().parent.mkdir(parents=True, exist_ok=True)
        with open(file(), "ab") as handle:
            handle.write((json.dumps(asdict(speed)) + "\n").encode())
            long = handle.tell() > 2 * KEPT * 200
        if long:
            write_atomically(file(), b"".join(line + b"\n" for line in file().read_bytes().splitlines()[-KEPT:]))


def seconds(asked: Speed) -> float | None:
    """Seconds of a step like this one, from the nearest of this method that was measured on this device with such a base.

    None: nobody knows.
    """
    alike = [one for one in known() if (one.device, one.method) == (asked.device, asked.method)
             and 1 / NEAR <= one.weights / max(1, asked.weights) <= NEAR]
    if not alike:
        return None
    nearest = min(reversed(alike), key=lambda one: abs(math.log(one.pixels / asked.pixels)))
    return nearest.seconds * asked.pixels / nearest.pixels


def device_name(device: object) -> str:
    """A device as it is told from others of its kind."""
    kind = str(device).partition(":")[0]
    if kind == "cuda":
        import torch
        return f"cuda {torch.cuda.get_device_name(str(device))}"
    return f"{kind} {os.environ.get('OMP_NUM_THREADS') or os.cpu_count()}"
