"""What is measured: one base, its pictures, and the settings that every loop is given alike."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

WORD = "zwx-word"


@dataclass(frozen=True)
class Case:
    """A training with AdamW at 1e-4, gradients shortened to 1, float32, on the CPU.

    turn: steps in a turn. warm_up: steps before the first. method: a LoRA (rank = alpha, on what `targets` names), a word of one
    vector (textual_inversion), or a ControlNet.
    """

    name: str
    base: str
    pictures: str
    resolution: int
    batch_size: int
    turn: int
    warm_up: int
    rank: int = 16
    targets: str = "attention+ff"
    learning_rate: float = 1e-4
    precision: str = "fp32"
    method: str = "lora"

    @property
    def folder(self) -> Path:
        """The base as a diffusers folder."""
        import aprendiz
        return Path(aprendiz.__file__).parent / "micro" / "base" if self.base == "micro" else Path(self.base)

    def lora_targets(self, network: Any) -> list[str]:
        """The layers under LoRA, for all loops."""
        from aprendiz.nets import unet
        return unet.lora_targets(network, self.targets)

    def dump(self) -> str:
        """As a command-line argument."""
        return json.dumps(asdict(self))

    @classmethod
    def from_arguments(cls) -> Case:
        """The case that this process was started with."""
        return cls(**json.loads(sys.argv[1]))
