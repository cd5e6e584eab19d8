"""Presets: settings that go well together, by method and size of the card. Standard library only: hosts import this."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..texts import say


@dataclass(frozen=True)
class Preset:
    """A name for people, and values by setting ('training.batch_size')."""

    title: str
    values: Mapping[str, Any]


def presets() -> list[Preset]:
    """Those there are, in the person's language."""
    return [
        Preset(say("A quick try (a few minutes)"), {"training.steps": 200, "training.batch_size": 1, "method.rank": 8,
                                                    "training.save_every_steps": 100, "samples.sample_every_steps": 50}),
        Preset(say("A thing or a person"), {"training.steps": 1200, "method.rank": 16, "training.save_every_steps": 200,
                                            "samples.sample_every_steps": 200, "prior.pictures": 100}),
        Preset(say("A style"), {"training.steps": 2000, "method.rank": 32, "data.caption_dropout": 0.1,
                                "training.save_every_steps": 250, "samples.sample_every_steps": 250}),
        Preset(say("A card of 6 to 8 GB"), {"training.batch_size": 1, "training.gradient_checkpointing": True,
                                            "optimizer.optimizer": "adamw8bit", "training.memory": "auto"}),
        Preset(say("A card of 24 GB or more"), {"training.batch_size": 4, "training.gradient_checkpointing": False,
                                                "optimizer.optimizer": "adamw"}),
    ]
