"""The textbook loops of the other methods: diffusers, plainly, after its `textual_inversion.py` and `train_controlnet.py`.

Both read, encode and train in every step, as those examples do. The word's loop keeps gradients and moments for the whole table
of tokens and puts every other row back after each step. In turns, started by `turns.Loop`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ControlNetModel, DDPMScheduler, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from .case import WORD, Case
from .textbook import Pictures, forever
from .turns import Turns

Predict = Callable[[Tensor, Tensor, Tensor, dict[str, Tensor]], Tensor]


class Conditioned(Pictures):
    """Pictures with their condition pictures in [0, 1], or with the word in front of their captions."""

    def __init__(self, case: Case, tokenizer: Any) -> None:
        super().__init__(case, tokenizer)
        self.control = case.method == "controlnet"
        if not self.control:
            self.entries = [{**entry, "text": f"{WORD}, {entry['text']}"} for entry in self.entries]

    def __getitem__(self, number: int) -> dict[str, Tensor]:
        found = super().__getitem__(number)
        if self.control:
            shown = Image.open(Path(self.folder, self.entries[number]["conditioning_image"])).convert("RGB")
            shown = shown.resize((self.side, self.side), Image.Resampling.LANCZOS)
            found["shown"] = torch.from_numpy(np.array(shown)).permute(2, 0, 1).float() / 255
        return found


def word_loop(encoder: Any, tokenizer: Any, unet: Any) -> tuple[list[Tensor], Predict, Callable[[], None]]:
    """What is trained, how noise is predicted, and what is done after a step: a new row of the table of tokens."""
    tokenizer.add_tokens([WORD])
    new, begun = tokenizer.convert_tokens_to_ids([WORD, "square</w>"])
    encoder.resize_token_embeddings(len(tokenizer))
    table = encoder.get_input_embeddings()
    with torch.no_grad():
        table.weight[new] = table.weight[begun]
    table.requires_grad_(True)
    before = table.weight.detach().clone()
    others = torch.ones(len(before), dtype=torch.bool)
    others[new] = False

    def restore() -> None:
        with torch.no_grad():
            table.weight[others] = before[others]

    def predict(noisy: Tensor, timesteps: Tensor, states: Tensor, batch: dict[str, Tensor]) -> Tensor:
        found: Tensor = unet(noisy, timesteps, states, return_dict=False)[0]
        return found

    return list(table.parameters()), predict, restore


def control_loop(unet: Any) -> tuple[list[Tensor], Predict, Callable[[], None]]:
    """The same, of a control branch."""
    branch = ControlNetModel.from_unet(unet)
    branch.requires_grad_(True).train()

    def predict(noisy: Tensor, timesteps: Tensor, states: Tensor, batch: dict[str, Tensor]) -> Tensor:
        down, middle = branch(noisy, timesteps, states, controlnet_cond=batch["shown"], return_dict=False)
        found: Tensor = unet(noisy, timesteps, states, down_block_additional_residuals=down,
                             mid_block_additional_residual=middle, return_dict=False)[0]
        return found

    return list(branch.parameters()), predict, lambda: None


def main() -> None:
    case = Case.from_arguments()
    folder = case.folder
    schedule = DDPMScheduler.from_pretrained(folder, subfolder="scheduler")
    tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder", dtype=torch.float32)
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", torch_dtype=torch.float32)
    for module in (encoder, vae, unet):
        module.requires_grad_(False)
    controls = case.method == "controlnet"
    trained, predict, after = control_loop(unet) if controls else word_loop(encoder, tokenizer, unet)
    optimizer = torch.optim.AdamW(trained, lr=case.learning_rate, weight_decay=0.01)
    loader = torch.utils.data.DataLoader(Conditioned(case, tokenizer), shuffle=True, batch_size=case.batch_size)
    turns = Turns(case.warm_up)
    unet.train()
    for batch in forever(loader):
        latents = vae.encode(batch["pixels"]).latent_dist.sample().detach() * vae.config.scaling_factor
        states = encoder(batch["ids"], return_dict=False)[0]
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, schedule.config.num_train_timesteps, (len(latents),))
        predicted = predict(schedule.add_noise(latents, noise, timesteps), timesteps, states, batch)
        loss = F.mse_loss(predicted.float(), noise.float())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after()
        loss.item()
        turns.done()


if __name__ == "__main__":
    main()
