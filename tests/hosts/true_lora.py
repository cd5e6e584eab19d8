"""A random LoRA of the true shape of a base, written by us, and the same plainly, for a host to be held against."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from aprendiz import registry
from aprendiz.families import Base, Source
from aprendiz.formats import kohya, names

UNETS: dict[str, dict[str, Any]] = {
    "sd1": {"block_out_channels": (320, 640, 1280, 1280), "attention_head_dim": 8, "cross_attention_dim": 768},
    "sdxl": {"block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
             "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True, "addition_embed_type": "text_time",
             "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
             "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
             "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")},
}
ENCODERS = {"sd1": [(768, 3072, 12)], "sdxl": [(768, 3072, 12), (1280, 5120, 32)]}  # width, inner width, layers


@dataclass(frozen=True)
class TrueLora:
    """file: as a user has it. plain: the same matrices under '<part>.<module>.down|up|alpha'. modules: how many."""

    file: Path
    plain: Path
    modules: int


def true_base(family: str) -> Base:
    """A base of the true shape, on the meta device."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    encoders: list[torch.nn.Module] = []
    with torch.device("meta"):
        network = UNet2DConditionModel(**UNETS[family])
        for i, (width, inner, layers) in enumerate(ENCODERS[family]):
            config = CLIPTextConfig(hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=4)
            encoders.append((CLIPTextModelWithProjection if i else CLIPTextModel)(config))
    return Base(registry.families()[family], Source(family, Path(family), "folder"), network, None, encoders, [], "epsilon", {},
                512)


def write(family: str, folder: Path, rank: int = 4, alpha: float = 2.3) -> TrueLora:
    """A LoRA over everything that can be trained (convolutions and every text encoder too), in float32."""
    base = true_base(family)
    generator = torch.Generator().manual_seed(0)
    weights, plain = [], {}
    for part, modules in base.family.lora_targets(base, "all").items():
        for module in modules:
            weight = base.parts()[part].get_submodule(module).weight
            down = torch.randn(rank, *weight.shape[1:], generator=generator) * 0.02
            up = torch.randn(weight.shape[0], rank, *[1] * (weight.ndim - 2), generator=generator) * 0.02
            weights.append(kohya.LoraWeight(part, module, down, up, alpha))
            name = f"{part}.{names.file_module(part, module)}"
            plain |= {f"{name}.down": down, f"{name}.up": up, f"{name}.alpha": torch.tensor(alpha)}
    file = kohya.write(folder / f"{family}.safetensors", weights, base.family, {"ss_output_name": family}, torch.float32)
    save_file(plain, folder / f"{family}-plain.safetensors")
    return TrueLora(file, folder / f"{family}-plain.safetensors", len(weights))
