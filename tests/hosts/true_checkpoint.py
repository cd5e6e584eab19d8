"""A Stable Diffusion 1.5 of the true shape with random weights, as one file; and where in such a file a LoRA's modules stand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
import true_lora
from torch import nn

from aprendiz import registry
from aprendiz.formats import original
from aprendiz.formats.single_file import write_single_file

VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215,
       "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}


def write_sd1(file: Path) -> Path:
    """Write the file in half precision, 2.1 GB."""
    from diffusers import AutoencoderKL
    with torch.device("meta"):
        vae = AutoencoderKL(**VAE)
    base = replace(true_lora.true_base("sd1"), vae=vae)
    numbers = torch.randn(1 << 26, generator=torch.Generator().manual_seed(2)).half()
    for place, module in enumerate([base.network, vae, *base.text_encoders]):
        module.load_state_dict(random_state(module, numbers, place), assign=True)
    return write_single_file(base, file)[0]


def random_state(module: nn.Module, numbers: torch.Tensor, place: int) -> dict[str, torch.Tensor]:
    """Weights that keep a signal's size, each another stretch of the same numbers; normalisation as a new module has it."""
    state = {}
    for i, (name, parameter) in enumerate(module.named_parameters()):
        if parameter.ndim == 1:
            state[name] = torch.full(parameter.shape, float("norm" in name and name.endswith("weight")), dtype=numbers.dtype)
            continue
        start = 7919 * (1000 * place + i) % (len(numbers) - parameter.numel())
        stretch = numbers[start:start + parameter.numel()].view(parameter.shape)
        state[name] = stretch / (1 if "embedding" in name and "linear" not in name else parameter[0].numel()) ** 0.5
    return state


def checkpoint_keys(family: str, lora: true_lora.TrueLora) -> dict[str, tuple[str, int | None]]:
    """For each module of a LoRA: the tensor of a checkpoint in the original layout, and which third of its rows (None: all)."""
    from safetensors import safe_open
    with safe_open(lora.plain, "pt") as file:
        modules = sorted(name.removesuffix(".down") for name in file.keys() if name.endswith(".down"))
    layout = registry.families()[family].layout()
    assert layout is not None
    attention = original.attention_of(true_lora.true_base(family).network.state_dict())
    found = {}
    for name in modules:
        part, _, module = name.partition(".")
        if part == "network":
            piece, prefix = original.network_piece(f"{module}.weight", attention), original.NETWORK
        else:
            text = layout.texts[int(part[-1]) - 1]
            piece, prefix = original.text_piece(f"{module}.weight", text.openclip), text.prefix
        found[name] = (prefix + piece.key, piece.third)
    return found


def write_keys(family: str, lora: true_lora.TrueLora) -> Path:
    """The same as a JSON file beside the LoRA's plain form."""
    file = lora.plain.with_suffix(".json")
    file.write_text(json.dumps(checkpoint_keys(family, lora)), encoding="utf-8")
    return file


def write_shapes(family: str, file: Path) -> Path:
    """The shapes of a U-Net of the true shape, by its tensors' names in a checkpoint, as JSON."""
    state = true_lora.true_base(family).network.state_dict()
    attention = original.attention_of(state)
    shapes = {original.NETWORK + original.network_piece(name, attention).key: list(tensor.shape)
              for name, tensor in state.items()}
    file.write_text(json.dumps(shapes), encoding="utf-8")
    return file
