"""The alpha of a LoRA in PEFT's layout, which has no tensor for it: diffusers tells it in the metadata.

`lora_adapter_metadata` is a text of JSON, the `LoraConfig` of each part with its name in front: {"unet.r": 16,
"unet.lora_alpha": 8, "unet.alpha_pattern": {"attn1.to_q": 4}, "text_encoder.r": ...}; a network saved alone has no name in
front (diffusers 0.42: `loaders/lora_base.py`, `loaders/peft.py`). Ranks are those of the tensors. Standard library only.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from . import names

KEY = "lora_adapter_metadata"
PREFIXES = {names.NETWORK: ("unet.", ""), names.TEXT_1: ("text_encoder.",), names.TEXT_2: ("text_encoder_2.",)}


class Alphas:
    """What a file's metadata tells of alpha. Whatever in it makes no sense is left, as if it were not there."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        self._parts: dict[str, tuple[float, list[tuple[re.Pattern[str], float]], bool]] = {}
        said = _said(metadata)
        for part, prefixes in PREFIXES.items():
            for prefix in prefixes:
                usual = _number(said.get(f"{prefix}lora_alpha"))
                if usual is not None and part not in self._parts:
                    self._parts[part] = usual, _patterns(said.get(f"{prefix}alpha_pattern")), \
                        said.get(f"{prefix}use_rslora") is True

    def of(self, part: str, module: str, rank: int) -> float | None:
        """A module's alpha, None where nothing tells it. module: as `names.place` has it."""
        if part not in self._parts:
            return None
        usual, patterns, by_root = self._parts[part]
        alpha = next((alpha for name, alpha in patterns if name.match(module)), usual)
        return alpha * math.sqrt(rank) if by_root else alpha  # rsLoRA scales by alpha / sqrt(r), not alpha / r


def _said(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        said = json.loads(metadata.get(KEY, ""))
    except (ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def _number(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0
    return float(value) if number else None


def _patterns(said: Any) -> list[tuple[re.Pattern[str], float]]:
    """Ends of modules' names, as PEFT matches them (`get_pattern_key`): the first that fits counts."""
    found = []
    for name, value in said.items() if isinstance(said, dict) else ():
        alpha = _number(value)
        try:
            pattern = re.compile(rf"(.*\.)?({name})$")
        except re.error:
            continue
        if alpha is not None:
            found.append((pattern, alpha))
    return found
