"""The textbook loop: diffusers and peft, plainly, after diffusers' own `train_text_to_image_lora.py`.

`encode` reads, encodes and trains in every step, as that example does; `cache` encodes pictures and captions once and lets the
encoders go. Both in turns, started by `turns.Loop`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from peft import LoraConfig
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .case import Case
from .turns import Turns


class Pictures(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Pixels in [-1, 1] and token ids, read anew each time."""

    def __init__(self, case: Case, tokenizer: Any) -> None:
        self.folder, self.side, self.tokenizer = Path(case.pictures), case.resolution, tokenizer
        lines = (self.folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
        self.entries = [json.loads(line) for line in lines]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        entry = self.entries[number]
        picture = Image.open(self.folder / entry["file_name"]).convert("RGB")
        picture = picture.resize((self.side, self.side), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1
        tokens = self.tokenizer(entry["text"], max_length=self.tokenizer.model_max_length, padding="max_length", truncation=True,
                                return_tensors="pt")
        return {"pixels": pixels, "ids": tokens.input_ids[0]}


def main() -> None:
    case, caching = Case.from_arguments(), sys.argv[2] == "cache"
    folder = case.folder
    schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    for module in (encoder, vae, unet):
        module.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=case.rank, lora_alpha=case.rank, init_lora_weights="gaussian",
                                target_modules=case.lora_targets(unet)))
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=case.learning_rate, weight_decay=0.01)
    pictures = Pictures(case, tokenizer)
    if caching:
        with torch.no_grad():
            read = (pictures[number] for number in range(len(pictures)))
            encoded = [(vae.encode(one["pixels"][None]).latent_dist.mean[0] * vae.config.scaling_factor,
                        encoder(one["ids"][None], return_dict=False)[0][0]) for one in read]
        del vae, encoder
        offered: Any = encoded
    else:
        offered = pictures
    loader = torch.utils.data.DataLoader(offered, shuffle=True, batch_size=case.batch_size)
    turns = Turns(case.warm_up)
    unet.train()
    for batch in forever(loader):
        if caching:
            latents, states = batch
        else:
            latents = vae.encode(batch["pixels"]).latent_dist.sample() * vae.config.scaling_factor
            states = encoder(batch["ids"], return_dict=False)[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),))
        predicted = unet(schedule.add_noise(latents, noise, timesteps), timesteps, states, return_dict=False)[0]
        loss = F.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        turns.done()


def forever(loader: Any) -> Iterator[Any]:
    """Epoch after epoch."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
