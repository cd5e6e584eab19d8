"""Random numbers that belong to (seed, step, sample) and to nothing else.

Splitting a batch, using several processes or resuming in the middle therefore changes no draw. Every draw comes from a CPU
generator of its own, so that it is the same on every device.
"""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Draws:
    """All random numbers of a run. `purpose` keeps the draws of one sample apart from each other."""

    seed: int

    def number(self, purpose: str, step: int, sample: int) -> int:
        """63 random bits."""
        text = f"{self.seed}/{purpose}/{step}/{sample}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1

    def choices(self, purpose: str, step: int, sample: int) -> random.Random:
        """A generator of plain numbers, for shuffles and picks."""
        return random.Random(self.number(purpose, step, sample))

    def normal(self, purpose: str, step: int, sample: int, shape: tuple[int, ...]) -> Tensor:
        """Standard normal float32 numbers on the CPU."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(self.number(purpose, step, sample)))

    def uniform(self, purpose: str, step: int, sample: int, shape: tuple[int, ...]) -> Tensor:
        """float32 numbers in [0, 1) on the CPU."""
        return torch.rand(shape, generator=torch.Generator().manual_seed(self.number(purpose, step, sample)))
