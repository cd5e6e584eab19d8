"""LoRA files in PEFT's layout (`unet.<module>.lora_A.weight`), an export for diffusers alone.

The scale is folded into lora_B, because hosts that take this layout drop its alpha. ComfyUI leaves the attention modules of SD
1, 2 and XL unloaded in this layout (128 and 560 of them), and the WebUIs load none: kohya's is the default.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from . import names
from .kohya import LoraWeight, folded, stored, write_tensors

if TYPE_CHECKING:
    from ..families import Family

PREFIXES = {"text_encoder_1": "text_encoder", "text_encoder_2": "text_encoder_2"}


def write(file: Path, weights: Sequence[LoraWeight], family: Family, metadata: Mapping[str, str],
          dtype: torch.dtype = torch.float16, again: bool = False) -> Path:
    """Write a LoRA in PEFT's layout. Raises as `kohya.write` does."""
    tensors = {}
    for one in map(folded, weights):
        name = peft_name(one.part, one.module)
        tensors[f"{name}.lora_A.weight"] = stored(one.down, dtype, one.module)
        tensors[f"{name}.lora_B.weight"] = stored(one.up, dtype, one.module)
    return write_tensors(file, tensors, metadata, again)


def peft_name(part: str, module: str) -> str:
    """'unet.<module>', or 'text_encoder.text_model.<module>'."""
    prefix = PREFIXES.get(part, "unet")
    return f"{prefix}.{names.file_module(part, module)}"
