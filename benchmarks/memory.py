"""What a step takes of a card's memory at true shape, by the ways of fitting it in: estimates, counted without a card or weights.

`python -m benchmarks.memory` prints the table of `docs/memory.md`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from aprendiz.estimate import Choice, Need, Work
from aprendiz.families import Base, Source
from aprendiz.formats.loading import SCHEDULE
from aprendiz.memory import MARGIN, Ladder
from aprendiz.nets.frozen import exchange
from aprendiz.registry import families, methods
from aprendiz.settings import Job

from .bases import SD15, SDXL

WIDTHS = {"sd1": {"text_BTD": (77, 768)}, "sdxl": {"text_BTD": (77, 2048), "pooled_BD": (1280,)}}
RUNS = [("SD1.5 at 512", "sd1", SD15, 512, 1), ("SD1.5 at 512, batch 4", "sd1", SD15, 512, 4),
        ("SDXL at 1024", "sdxl", SDXL, 1024, 1), ("SDXL at 1024, batch 4", "sdxl", SDXL, 1024, 4)]


def need(family: str, config: Mapping[str, Any], size: int, batch: int, **settings: Any) -> Need:
    """A LoRA run on a network of shapes alone, in bf16 on a CUDA card."""
    from diffusers import UNet2DConditionModel
    with torch.device("meta"):
        network = UNet2DConditionModel(**config).to(torch.bfloat16).requires_grad_(False).eval()
    exchange(network)
    kind = families()[family]
    source = Source(family, Path(family), "memory", "epsilon")
    base = Base(kind, source, network, None, [], [], "epsilon", dict(SCHEDULE), size)
    job = Job.read({"method": "lora", "base": "micro", "data": "none", "batch_size": batch, **settings})
    method = methods()["lora"](base, job)
    state = kind.Conditioning(**{name: torch.zeros(1, *shape) for name, shape in WIDTHS[family].items()})
    return Need(Work(job, base, method, torch.device("cuda"), pictures=batch, size=(size, size), state=state))


def rungs(found: Need, batch: int) -> list[tuple[str, Choice]]:
    """The ladder's whole rungs."""
    ladder = Ladder(len(found.pieces), batch, streams=True)
    choice: Choice | None = Choice()
    named = []
    while choice is not None:
        words = [f"{len(choice.recomputed)} recomputed"] if choice.recomputed else []
        words += [f"{choice.parts} parts"] if choice.parts > 1 else []
        words += ["8 bits"] if choice.eight_bit else []
        words += ["streamed"] if choice.streamed else []
        named.append((", ".join(words) or "nothing", choice))
        choice = ladder.below(choice)
    every = ladder.all
    return [*named, ("all recomputed, bf16 streamed", Choice(every, batch, False, every))]


def main() -> None:
    """Print a table for each run: GB by what takes it."""
    logging.disable(logging.WARNING)
    for targets in ("attention", "attention+ff"):
        for title, family, config, size, batch in RUNS:
            found = need(family, config, size, batch, targets=targets)
            print(f"\n{title}, rank 16, {targets}\n")
            print("| | weights | activations | trained | constant | all | more work | copied a step "
                  "|\n|---|---|---|---|---|---|---|---|")
            for name, choice in rungs(found, batch):
                taken = found.of(choice)
                figures = [taken.weights, taken.activations, taken.trained, taken.constant, taken.total]
                told = " | ".join(f"{figure / 1e9:.2f}" for figure in figures)
                slower = found.trace(found.work.each(choice)).slower(choice.recomputed)
                print(f"| {name} | {told} | {100 * slower:.0f} % | {found.streamed_bytes(choice) / 1e9:.1f} GB |")
            for card in (4, 6, 8, 10, 12, 16, 24):
                free = int((card - 0.6) * 1e9)  # a desktop and the driver have some of it
                choice, taken = Ladder(len(found.pieces), batch, streams=True).choose(found, Choice(), free)
                fits = "" if taken.total + MARGIN <= free else " (less than a gigabyte is left)"
                print(f"- {card} GB: {len(choice.recomputed)} recomputed, {choice.parts} parts, 8 bits {choice.eight_bit}, "
                      f"{len(choice.streamed)} streamed: {taken.total / 1e9:.1f} GB{fits}")


if __name__ == "__main__":
    main()
