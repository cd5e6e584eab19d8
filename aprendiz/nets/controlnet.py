"""Control branches of U-Nets (Zhang et al. 2023): a copy of the downward half, shown a picture, heard through zero convolutions.

The network is diffusers' ControlNetModel. Our own is how its hint network begins (`spread_hint`). Shapes: B batch, C latent
channels, H W latent size, T tokens, D features; condition pictures in pixels, in [0, 1], -1 where something is hidden.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

HEARD = ("controlnet_down_blocks.", "controlnet_mid_block.", "controlnet_cond_embedding.conv_out.")  # the zero convolutions

Residuals = tuple[list[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Control:
    """A control branch at work on a picture that is drawn.

    picture: the condition picture, of any size and mode. strength: 1 as it was trained. start, end: the share of the sampler's
    steps between which it is heard. name: as the picture's parameters tell it. kind: of the condition; 'inpaint' takes
    transparency as hidden.
    """

    branch: nn.Module
    picture: Image.Image
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0
    name: str = ""
    kind: str = ""

    def heard(self, step: int, steps: int) -> bool:
        """Whether it is heard at this of the sampler's steps, counted from 0."""
        return self.strength != 0 and self.start <= step / steps < self.end

    def pixels(self, size: tuple[int, int]) -> Tensor:
        """The condition picture at a size (width, height) in pixels, (1, 3, H, W); what does not fit the shape is cut evenly."""
        picture = ImageOps.exif_transpose(self.picture)
        clear = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
        fitted = ImageOps.fit(picture.convert("RGBA" if clear else "RGB"), size, Image.Resampling.BILINEAR)
        if clear and self.kind != "inpaint":
            fitted = Image.alpha_composite(Image.new("RGBA", size, "black"), fitted).convert("RGB")
        values = torch.from_numpy(np.array(fitted)).permute(2, 0, 1)[None]
        shown = values[:, :3].float() / 255
        return torch.where(values[:, 3:] > 127, shown, -1.0) if values.shape[1] == 4 else shown


def branch_of(network: Any, hint_widths: Sequence[int] = (16, 32, 96, 256), copied: bool = True) -> nn.Module:
    """A branch for this U-Net in float32, everything that is in both copied; its zero convolutions are zero."""
    from diffusers import ControlNetModel
    shapes = next(network.parameters()).is_meta  # only shapes are known, and only they are asked for
    with torch.device("meta") if shapes else contextlib.nullcontext():
        made: nn.Module = ControlNetModel.from_unet(network, conditioning_embedding_out_channels=tuple(hint_widths),
                                                    load_weights_from_unet=copied and not shapes)
    return made.float().eval()


@torch.no_grad()
def spread_hint(branch: Any, seed: int) -> None:
    """Begin the hint network so that what differs in the condition pictures arrives: unit variance at every layer.

    Its usual beginning shrinks the signal threefold at each of seven layers, while biases grow: the convolution at its end,
    which begins at zero, then has next to nothing to learn from, and the branch stands still for thousands of steps. Here every
    layer is random orthogonal, scaled on sparse lines and smooth fields until each channel has mean 0 and variance 1. The end
    stays zero.
    """
    generator = torch.Generator().manual_seed(seed)
    hint = branch.controlnet_cond_embedding
    if hint.conv_in.weight.is_meta:
        return
    x = _examples(generator)
    for layer in [hint.conv_in, *hint.blocks]:
        layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / math.sqrt(layer.weight[0].numel()))
        layer.bias.zero_()
        y = layer(x)
        mean, std = y.mean((0, 2, 3)), y.std((0, 2, 3)) + 1e-6
        layer.weight.div_(std.view(-1, 1, 1, 1))
        layer.bias.copy_(-mean / std)
        x = F.silu(layer(x))


def _examples(generator: torch.Generator, count: int = 16, size: int = 128) -> Tensor:
    """What condition pictures may look like, half of them lines and half smooth fields of colour, (count, 3, size, size)."""
    half = count // 2
    coarse = torch.rand(half, 3, 5, 5, generator=generator)
    fields = F.interpolate(coarse, (size, size), mode="bilinear", align_corners=True)
    heights = F.interpolate(torch.rand(half, 1, 6, 6, generator=generator), (size, size), mode="bicubic", align_corners=True)
    lines = ((heights * 4).frac().sub(0.5).abs() < 0.06).float().expand(-1, 3, -1, -1)
    return torch.cat([lines, fields])


@torch.no_grad()
def stir(branch: nn.Module, spread: float, seed: int) -> None:
    """Begin the zero convolutions at random instead, normal with this deviation. What is untrained then changes pictures."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in branch.named_parameters():
        if name.startswith(HEARD) and parameter.ndim > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread)


def residuals(branch: nn.Module, noisy_BCHW: Tensor, timesteps_B: Tensor, text_BTD: Tensor, condition_B3HW: Tensor,
              added: Mapping[str, Tensor] | None = None) -> Residuals:
    """What the branch adds to the U-Net's skip connections and to its middle, in the branch's own precision."""
    weight = next(branch.parameters())
    down, middle = branch(
        noisy_BCHW.to(weight.dtype), timesteps_B, text_BTD.to(weight.dtype), condition_B3HW.to(weight.device, weight.dtype),
        added_cond_kwargs={name: tensor.to(weight.dtype) for name, tensor in added.items()} if added else None, return_dict=False)
    return list(down), middle


def joined(several: Sequence[tuple[Residuals, float]]) -> Residuals | None:
    """The sum of several branches' residuals, each times its strength."""
    scaled = [([one * strength for one in down], middle * strength) for (down, middle), strength in several]
    if not scaled:
        return None
    down, middle = scaled[0]
    for more, last in scaled[1:]:
        down, middle = [a + b for a, b in zip(down, more)], middle + last
    return down, middle
