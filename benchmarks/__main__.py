"""`python -m benchmarks`: our loop beside two textbook loops, in one run, with ratios; and the time from command to first step.

    python -m benchmarks                      all on micro and on a true-shape Stable Diffusion 1.5, five alternating pairs each
    python -m benchmarks micro-8 --pairs 9    one of the cases (micro-4, micro-8, sd15-256), more pairs
    python -m benchmarks word-micro-8 word-sd15-256 control-micro-8     textual inversion and ControlNet
    python -m benchmarks --script FILE        diffusers' own train_text_to_image_lora.py beside the textbook loop that encodes
    python -m benchmarks --write NAME         keep the figures as benchmarks/results/NAME.json and NAME.md

Every loop has one thread, a process of its own, and the same base, pictures, precision, batch, rank, targets and optimizer. On a
machine that others use too, the processor's time says more than the clock; both are told.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from . import bases, startup
from .case import Case
from .turns import Loop, Turn

RESULTS = Path(__file__).parent / "results"
OTHERS = {"textbook, encodes every step": ("benchmarks.textbook", "encode"), "textbook, caches": ("benchmarks.textbook", "cache")}
OF_METHODS = {"diffusers' example's way, encodes every step": ("benchmarks.textbook_methods",)}
TARGETS = {"textbook, encodes every step": 1.3, "textbook, caches": 0.98}
METHODS = {"word": "textual_inversion", "control": "controlnet"}
CASES = ("micro-4", "micro-8", "sd15-256", "word-micro-8", "word-sd15-256", "control-micro-8")


def case(name: str, folder: Path, tiny: bool) -> Case:
    """A case with its base and pictures, made in this folder where they are not yet there."""
    first, _, rest = name.partition("-")
    if first in METHODS:
        alike = case(rest, folder, tiny)
        place = folder / f"{Path(alike.pictures).name}-{first}"
        pictures = bases.write_pictures(place, alike.resolution * 2, control=first == "control")
        return replace(alike, name=name, method=METHODS[first], pictures=str(pictures))
    if name.startswith("micro"):
        pictures = bases.write_pictures(folder / "pictures-256", 256)
        return Case(name, "micro", str(pictures), 64 if tiny else 128, int(name.split("-")[1]), turn=1 if tiny else 8, warm_up=2)
    base = bases.write_sd15(folder / ("sd15-tiny" if tiny else "sd15"), tiny=tiny)
    pictures = bases.write_pictures(folder / "pictures-512", 512)
    return Case(name, str(base), str(pictures), 64 if tiny else 256, 1, turn=1 if tiny else 2, warm_up=1)


def alternate(arguments: Sequence[Sequence[str]], one: Case, pairs: int, folder: Path, threads: int) -> list[list[Turn]]:
    """Turns of two loops, each first in every other pair."""
    environment = {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "APRENDIZ_HOME": str(folder / "home")}
    loops = [Loop(["-m", which[0], one.dump(), *which[1:]], environment, folder / "log.txt") for which in arguments]
    turns: list[list[Turn]] = [[], []]
    for number in range(pairs):
        for which in (0, 1) if number % 2 == 0 else (1, 0):
            turns[which].append(loops[which].turn(one.turn))
    for loop in loops:
        loop.close()
    return turns


def compare(ours: list[Turn], theirs: list[Turn]) -> dict[str, Any]:
    """Figures of two loops: medians over their pairs."""
    def median(of: Sequence[float]) -> float:
        return round(statistics.median(of), 4)

    inside = [turn.inside_seconds / turn.seconds for turn in ours if turn.inside_seconds is not None]
    return {
        "times_as_fast": median([b.seconds / a.seconds for a, b in zip(ours, theirs)]),
        "times_as_fast_by_processor_time": median([b.processor_seconds / a.processor_seconds for a, b in zip(ours, theirs)]),
        "each_pair": [round(b.seconds / a.seconds, 3) for a, b in zip(ours, theirs)],
        "steps_per_second": [median([turn.rate for turn in turns]) for turns in (ours, theirs)],
        "processor_seconds_per_step": [median([t.processor_seconds / t.steps for t in turns]) for turns in (ours, theirs)],
        "peak_resident_mib": [round(max(turn.resident_mib for turn in turns)) for turns in (ours, theirs)],
        "peak_own_mib": [round(max(turn.own_mib for turn in turns)) for turns in (ours, theirs)],
        "step_share_of_loop": median(inside) if inside else None,
    }


def measure(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All that was asked for."""
    told: dict[str, Any] = {"machine": machine(asked.threads), "pairs": asked.pairs, "cases": {}}
    for name in asked.cases or CASES:
        one = case(name, folder, asked.tiny)
        base = "micro" if "micro" in name else "sd15"
        rows = told["cases"][name] = {"settings": {**asdict(one), "base": base, "pictures": "drawn"}}
        for other, arguments in (OTHERS if one.method == "lora" else OF_METHODS).items():
            rows[other] = compare(*alternate([("benchmarks.ours",), arguments], one, asked.pairs, folder, asked.threads))
            tell(name, other, rows[other])
        if asked.script and one.method == "lora":
            alike = replace(one, targets="attention")
            theirs = ("benchmarks.example", str(asked.script.absolute()))
            both = [("benchmarks.textbook", "encode"), theirs]
            rows["example"] = compare(*alternate(both, alike, asked.pairs, folder, asked.threads))
            tell(name, "diffusers' own example against the textbook that encodes", rows["example"])
    told["first_step"] = startup.measure(folder, asked.threads)
    first = told["first_step"]
    print(f"from command to first step on micro: {first['seconds']} s ({first['processor_seconds']} s of the processor)")
    return told


def machine(threads: int) -> str:
    """The machine in words."""
    import torch
    return (f"{os.cpu_count()} CPU cores ({platform.machine()}, {torch.backends.cpu.get_cpu_capability()}), {threads} thread(s) "
            f"to a loop, torch {torch.__version__}, Python {platform.python_version()}")


def tell(name: str, other: str, row: dict[str, Any]) -> None:
    """One comparison as a line."""
    rates, memory = row["steps_per_second"], row["peak_own_mib"]
    share = f", step {row['step_share_of_loop']:.1%} of the loop" if row["step_share_of_loop"] else ""
    print(f"{name:9} {other}: {row['times_as_fast']:.2f} times as fast ({row['times_as_fast_by_processor_time']:.2f} by "
          f"processor time; {rates[0]:.3g} against {rates[1]:.3g} steps/s), {memory[0]} against {memory[1]} MiB{share}",
          flush=True)


def table(told: dict[str, Any]) -> str:
    """The figures as a page."""
    lines = [f"# Our loop beside textbook loops\n\n{told['machine']}; medians of {told['pairs']} alternating pairs.\n",
             "Pairs of numbers are ours / theirs. Memory is in MiB, the most while training: all that is resident, and the",
             "process's own without mapped files.\n",
             "| case | beside | times as fast | by processor time | steps/s | resident | own | the step's share of our loop |",
             "|---|---|---|---|---|---|---|---|"]
    for name, rows in told["cases"].items():
        for other, row in rows.items():
            if other == "settings":
                continue
            who = other if other != "example" else "diffusers' example (theirs) against the textbook that encodes (ours)"
            keys = ("steps_per_second", "peak_resident_mib", "peak_own_mib")
            pairs = [" / ".join(f"{value:.4g}" for value in row[key]) for key in keys]
            share = f"{row['step_share_of_loop']:.1%}" if row["step_share_of_loop"] else ""
            lines.append(f"| {name} | {who} | {row['times_as_fast']:.2f} | {row['times_as_fast_by_processor_time']:.2f} "
                         f"| {pairs[0]} | {pairs[1]} | {pairs[2]} | {share} |")
    first = told["first_step"]
    lines.append(f"\nFrom command to first step on micro, caches warm, {first['threads']} thread(s): {first['seconds']} s by the "
                 f"clock, {first['processor_seconds']} s of the processor.\n")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", metavar="CASE", help=", ".join(CASES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where bases are made and kept; else a temporary one")
    parser.add_argument("--script", type=Path, help="diffusers' train_text_to_image_lora.py; needs torchvision and datasets")
    parser.add_argument("--write", metavar="NAME")
    parser.add_argument("--tiny", action="store_true", help="a few small steps, to see that it runs")
    asked = parser.parse_args()
    if unknown := set(asked.cases) - set(CASES):
        parser.error(f"there is no case {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        told = measure(asked, folder)
    if asked.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{asked.write}.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        (RESULTS / f"{asked.write}.md").write_text(table(told), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
