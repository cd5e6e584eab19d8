"""Random miniatures of the U-Net families, in float32 on the CPU: a U-Net of the family's own, the parts around it from here."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..families import Base, Family, Source
from ..formats import clip_vocab
from ..formats.loading import SCHEDULE

WIDTH = 32  # of the text states of one encoder


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random weights that follow from a seed; the draws of the rest of the program stay as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def text_encoder(activation: str, projection: bool = False) -> nn.Module:
    """A CLIP text encoder of two layers, for CLIP's own tokens."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    config = CLIPTextConfig(
        vocab_size=clip_vocab.SIZE, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2, num_attention_heads=4,
        hidden_act=activation, projection_dim=WIDTH, bos_token_id=clip_vocab.SIZE - 2, eos_token_id=clip_vocab.SIZE - 1)
    built: nn.Module = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    return built


def base(family: Family, network: nn.Module, encoders: Sequence[nn.Module], pads: Sequence[str], prediction: str) -> Base:
    """A base around a U-Net: a VAE of 8 pixels to a latent, tokenizers, the usual noise schedule; all frozen."""
    from diffusers import AutoencoderKL
    layout = family.layout()
    assert layout is not None
    vae = AutoencoderKL(
        block_out_channels=(8, 16, 16, 16), layers_per_block=1, norm_num_groups=4, latent_channels=4, sample_size=64,
        scaling_factor=layout.vae_scale, down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
    for module in (network, vae, *encoders):
        module.requires_grad_(False).eval()
    tokenizers: list[Any] = [clip_vocab.tokenizer(pad) for pad in pads]
    said = "v_prediction" if prediction == "v" else prediction
    schedule = {**SCHEDULE, "prediction_type": said, "rescale_betas_zero_snr": False}
    source = Source(family.name, Path(f"tiny-{family.name}"), "memory", prediction, resolution=64)
    return Base(family, source, network, vae, list(encoders), tokenizers, prediction, schedule, resolution=64)
