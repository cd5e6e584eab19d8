"""What each host takes as names of a LoRA's modules, frozen from the host's own code by `benchmarks/hosts/freeze_keys.py`.

One `<host>.json.gz` a host: its version and commit, the day, how the list was made, the endings of tensor names that its loader
takes, and for each shape of base (`sd1`, `sd2`, `sdxl`, and the embedded `micro`) every accepted name by the weight it lands on.
A host without a shape cannot open such a base. Standard library only.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

HOSTS = ("comfyui", "automatic1111", "forge", "diffusers", "sd-scripts")  # in the order of every table


@dataclass(frozen=True)
class FrozenKeys:
    """One host's list. accepted: for each shape, name of a LoRA's module -> the host's weight; refuses: names that begin so make
    the host refuse the whole file."""

    host: str
    version: str
    commit: str
    date: str
    how: str
    suffixes: frozenset[str]
    refuses: tuple[str, ...]
    accepted: Mapping[str, Mapping[str, str]]


@cache
def frozen(name: str) -> FrozenKeys:
    """The list of one of HOSTS."""
    read = json.loads(gzip.decompress(Path(__file__).with_name(f"{name}.json.gz").read_bytes()))
    accepted = {shape: {spelt: target for target, spellings in targets.items() for spelt in spellings}
                for shape, targets in read["shapes"].items()}
    return FrozenKeys(read["host"], read["version"], read["commit"], read["date"], read["how"], frozenset(read["suffixes"]),
                      tuple(read.get("refuses", ())), accepted)
