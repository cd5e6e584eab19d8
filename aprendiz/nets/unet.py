"""What the U-Net families share: diffusers' UNet2DConditionModel, called, cut into blocks and searched for LoRA targets.

Shapes: B batch, C latent channels, H W latent size, T tokens, D features.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

ATTENTION = r"attentions\.\d+\.transformer_blocks\.\d+\.attn[12]\.(to_q|to_k|to_v|to_out\.0)"
FEED_FORWARD = r"attentions\.\d+\.(transformer_blocks\.\d+\.ff\.net\.(0\.proj|2)|proj_in|proj_out)"
RESIDUAL = r"resnets\.\d+\.(conv1|conv2|time_emb_proj|conv_shortcut)|(down|up)samplers\.\d+\.conv"
# As sd-scripts: conv_in, conv_out and the embeddings of time and label are never among them.
TARGETS = {"attention": ATTENTION, "attention+ff": f"{ATTENTION}|{FEED_FORWARD}", "all": f"{ATTENTION}|{FEED_FORWARD}|{RESIDUAL}"}


def predict(network: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, text_BTD: Tensor,
            added: Mapping[str, Tensor] | None = None, residuals: Any = None) -> Tensor:
    """The U-Net's answer, computed in its own precision and given back in that of the latents.

    added: SDXL's pooled text and sizes. residuals: a control branch's (down blocks' list, middle's).
    """
    dtype = next(network.parameters()).dtype
    down, middle = residuals if residuals is not None else (None, None)
    if down is not None and middle is not None:
        down, middle = [one.to(dtype) for one in down], middle.to(dtype)
    predicted = network(
        noisy_BCHW.to(dtype), timesteps_B, encoder_hidden_states=text_BTD.to(dtype),
        added_cond_kwargs={name: tensor.to(dtype) for name, tensor in added.items()} if added else None,
        down_block_additional_residuals=down, mid_block_additional_residual=middle, return_dict=False)[0]
    answer: Tensor = predicted.to(noisy_BCHW.dtype)
    return answer


def blocks(network: Any) -> list[nn.Module]:
    """Residual, transformer and sampling blocks in the order in which they run."""
    found: list[nn.Module] = []
    for stage in [*network.down_blocks, network.mid_block, *network.up_blocks]:
        resnets, attentions = list(stage.resnets), list(stage.attentions) if hasattr(stage, "attentions") else []
        if stage is network.mid_block:
            found.append(resnets.pop(0))
            found += [one for pair in zip(attentions, resnets) for one in pair]
        else:
            found += [one for i, resnet in enumerate(resnets) for one in (resnet, *attentions[i:i + 1])]
        for sampler in ("downsamplers", "upsamplers"):
            found += list(getattr(stage, sampler, None) or [])
    return found


def lora_targets(network: nn.Module, targets: str) -> list[str]:
    """The layers that a LoRA of this reach wraps, in sd-scripts' sets."""
    pattern = re.compile(rf"(?:.+\.)?(?:{TARGETS[targets]})")
    return [name for name, _ in network.named_modules() if pattern.fullmatch(name)]


def encode_images(vae: Any, pixels_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the latents of an AutoencoderKL, as its network was trained on them (unit variance)."""
    weight = next(vae.parameters())
    with torch.no_grad():
        parts = [vae.encode(some).latent_dist for some in _split(pixels_BCHW.to(weight.device, weight.dtype))]
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    mean, std = torch.cat([part.mean for part in parts]), torch.cat([part.std for part in parts])
    return (mean - shift) * scale, std * scale


def decode(vae: Any, latents_BCHW: Tensor) -> Tensor:
    """Pixels in [-1, 1]; carries gradients to the latents."""
    weight = next(vae.parameters())
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    latents = latents_BCHW.to(weight.device, weight.dtype) / scale + shift
    pixels = torch.cat([vae.decode(some, return_dict=False)[0] for some in _split(latents, vae_factor(vae) ** 2)])
    return pixels.clamp(-1, 1)


def _split(batch: Tensor, pixels_each: int = 1) -> Iterator[Tensor]:
    """A batch in parts of at most about a million pixels, which bounds the memory that a VAE takes."""
    each = max(1, (1 << 20) // (batch.shape[-1] * batch.shape[-2] * pixels_each))
    return iter(batch.split(each))


def vae_factor(vae: Any) -> int:
    """Pixels to a latent's side: 8 for all of SD."""
    return int(2 ** (len(vae.config.block_out_channels) - 1))
