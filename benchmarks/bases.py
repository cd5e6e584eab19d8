"""What the benchmarks train: micro, true-shape bases with random weights, and pictures drawn for them.

Random weights cost exactly what trained ones do. Widths and depths are those of the published models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CAPTIONS = ("a red square on a white background", "a small blue circle beside a large green one", "stripes of yellow and grey",
            "three dots in a row, the middle one black")

SD15: dict[str, Any] = {
    "sample_size": 64, "block_out_channels": (320, 640, 1280, 1280), "layers_per_block": 2, "cross_attention_dim": 768,
    "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3}
SDXL: dict[str, Any] = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "layers_per_block": 2, "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20), "transformer_layers_per_block": (1, 2, 10), "use_linear_projection": True,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816}
TINY_SD15 = {**SD15, "sample_size": 8, "block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 32,
             "attention_head_dim": 4}
TINY_SDXL = {**SDXL, "sample_size": 8, "block_out_channels": (32, 32, 64), "cross_attention_dim": 32,
             "attention_head_dim": (2, 2, 4), "transformer_layers_per_block": (1, 1, 2), "addition_time_embed_dim": 8,
             "projection_class_embeddings_input_dim": 80}
CLIP_L = {"vocab_size": 49408, "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
          "num_attention_heads": 12, "max_position_embeddings": 77, "hidden_act": "quick_gelu", "bos_token_id": 49406,
          "eos_token_id": 49407, "pad_token_id": 49407}
TINY_CLIP = {**CLIP_L, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
VAE = {"block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4, "scaling_factor": 0.18215,
       "sample_size": 512, "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
TINY_VAE = {**VAE, "block_out_channels": (32, 32, 32, 32), "layers_per_block": 1}
SCHEDULE = {"_class_name": "DDPMScheduler", "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012,
            "beta_schedule": "scaled_linear", "clip_sample": False, "steps_offset": 1, "prediction_type": "epsilon"}
CLASSES = {"unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
           "scheduler": ["diffusers", "DDPMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
           "tokenizer": ["transformers", "CLIPTokenizer"]}


def write_sd15(folder: Path, *, tiny: bool = False) -> Path:
    """A diffusers folder in the shapes of Stable Diffusion 1.5, its random weights in half precision, as it is downloaded."""
    from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from aprendiz.formats import clip_vocab
    if (folder / "model_index.json").is_file():
        return folder
    torch.manual_seed(0)
    network, vae, text = (TINY_SD15, TINY_VAE, TINY_CLIP) if tiny else (SD15, VAE, CLIP_L)
    UNet2DConditionModel(**network).half().save_pretrained(folder / "unet")
    AutoencoderKL(**vae).half().save_pretrained(folder / "vae")
    CLIPTextModel(CLIPTextConfig(**text)).half().save_pretrained(folder / "text_encoder")
    clip_vocab.tokenizer("<|endoftext|>").save_pretrained(folder / "tokenizer")
    DDPMScheduler.from_config(SCHEDULE).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **CLASSES}), encoding="utf-8")
    return folder


def write_pictures(folder: Path, side: int, count: int = 16, control: bool = False) -> Path:
    """Drawn pictures with a caption beside each, and the same captions as a metadata.jsonl for the usual example scripts.

    control: with a condition picture (its dark half) for each.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = []
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (side // 16, side // 16, 3), np.uint8))
        picture = coarse.resize((side, side), Image.Resampling.BICUBIC)
        name, caption = f"picture-{number:02}.png", f"{CAPTIONS[number % len(CAPTIONS)]}, number {number}"
        picture.save(folder / name)
        shown = {}
        if control:
            shown = {"conditioning_image": f"conditions/{name}"}
            (folder / "conditions").mkdir(exist_ok=True)
            picture.convert("L").point(lambda value: 255 * (value < 128)).convert("RGB").save(folder / "conditions" / name)
        lines.append(json.dumps({"file_name": name, "text": caption, **shown}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder
