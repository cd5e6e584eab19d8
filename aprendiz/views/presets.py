"""Presets: settings that go well together, by method and by size of the card. Standard library only: hosts import this.

They are set over each other: a subject and a card may both be chosen, and what a preset does not name stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..texts import say


@dataclass(frozen=True)
class Preset:
    """A name for people, and values by setting ('training.batch_size'). method: whose it is; empty for all."""

    title: str
    values: Mapping[str, Any]
    method: str = ""


def subjects() -> list[Preset]:
    """By what is taught, and how."""
    quick = {"training.steps": 200, "training.batch_size": 1, "training.save_every_steps": 100, "samples.sample_every_steps": 50}
    person = {"training.save_every_steps": 200, "samples.sample_every_steps": 200}
    return [
        Preset(say("A quick try (a few minutes)"), {**quick, "method.rank": 8}, "lora"),
        Preset(say("A thing or a person"), {**person, "training.steps": 1200, "method.rank": 16}, "lora"),
        Preset(say("A style"), {"training.steps": 2000, "method.rank": 32, "data.caption_dropout": 0.1,
                                "training.save_every_steps": 250, "samples.sample_every_steps": 250}, "lora"),
        Preset(say("A quick try (a few minutes)"), {**quick, "method.vectors": 2}, "textual_inversion"),
        Preset(say("A thing or a person"), {**person, "training.steps": 3000, "method.vectors": 4,
                                            "method.templates": "subject_filewords"}, "textual_inversion"),
        Preset(say("A style"), {**person, "training.steps": 3000, "method.vectors": 6,
                                "method.templates": "style_filewords"}, "textual_inversion"),
        Preset(say("A quick try (a few minutes)"), {**quick, "method.rank": 8}, "pivotal"),
        Preset(say("A thing or a person"), {**person, "training.steps": 1500, "method.rank": 16}, "pivotal"),
        Preset(say("A quick try (a few minutes)"), quick, "controlnet"),
        Preset(say("A first real ControlNet (hours)"), {"training.steps": 20000, "training.batch_size": 4,
                                                        "training.save_every_steps": 1000,
                                                        "samples.sample_every_steps": 500}, "controlnet"),
    ]


def cards() -> list[Preset]:
    """By the size of the card. Whatever is chosen, `memory = auto` fits the step in."""
    small = {"training.batch_size": 1, "training.memory": "auto"}
    return [
        Preset(say("A card of 4 to 6 GB"), {**small, "training.gradient_checkpointing": True, "data.resolution": 512}),
        Preset(say("A card of 8 GB"), {**small, "training.gradient_checkpointing": True}),
        Preset(say("A card of 12 to 16 GB"), {**small, "training.batch_size": 2, "training.gradient_checkpointing": False}),
        Preset(say("A card of 24 GB or more"), {"training.batch_size": 4, "training.memory": "auto",
                                                "training.gradient_checkpointing": False}),
    ]
