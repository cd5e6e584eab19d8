"""Train the evaluator: scenes of every kind, held-out shapes and style included, drawn anew for each batch; some are
seen through the VAE, because that is how generated pictures look.

Shapes: B batch, H W 128 pixels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from ..nets.evaluator import Evaluator, pixels
from .scenes import ALL_SHAPES, UNKNOWN, Choices, Picture, Scene, category, draw, imagine, labels
from .training import Build, Progress, Saved, batches, cosine, replace_with, set_learning_rate

THROUGH_VAE = 0.2  # share of a batch


def any_scene(rng: np.random.Generator) -> Scene:
    """A scene of any kind; simple ones and single figures are a little more frequent than the rest."""
    kind = rng.random()
    if kind < 0.12:
        return imagine(rng, Choices(shapes=ALL_SHAPES, style="neon"))
    if kind < 0.45:
        return imagine(rng, category("single_simple" if rng.random() < 0.6 else "pair_simple", shapes=ALL_SHAPES))
    return imagine(rng, category("single" if rng.random() < 0.65 else "pair", shapes=ALL_SHAPES))


def draw_labelled(seed: tuple[int, ...], count: int) -> tuple[list[Picture], Tensor]:
    """Pictures and their labels, count x 10."""
    rng = np.random.default_rng(seed)
    scenes = [any_scene(rng) for _ in range(count)]
    return [draw(scene, rng) for scene in scenes], torch.tensor([labels(scene).flat() for scene in scenes])


class LabelledScenes(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is a batch: pixels B 3 H W and labels B x 10."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        pictures, told = draw_labelled((77, step), self.batch)
        return pixels(pictures), told


@torch.inference_mode()
def reconstruct(vae: AutoencoderKL, pictures: list[Picture]) -> Tensor:
    """What the VAE makes of pictures: uint8, B 3 H W, on the CPU."""
    latents = vae.encode(pixels(pictures).to(vae.device, vae.dtype)).latent_dist.sample()
    decoded = vae.decode(latents).sample.clamp(-1, 1)
    return decoded.add(1).mul(127.5).round().byte().cpu()


def reconstructions(build: Build, vae: AutoencoderKL) -> tuple[Tensor, Tensor]:
    """A pool of reconstructed pictures and their labels, made once for a build."""
    file = build.path("reconstructions.pt")
    if not file.exists():
        made, told = [], []
        for start in range(0, build.size.reconstructions, 10):
            pictures, answers = draw_labelled((78, start), min(10, build.size.reconstructions - start))
            made.append(reconstruct(vae, pictures))
            told.append(answers)
        replace_with(file, (torch.cat(made), torch.cat(told)))
    seen, labelled = torch.load(file, weights_only=True)
    return seen, labelled


def augment(pixels_B3HW: Tensor, rng: torch.Generator) -> Tensor:
    """Sometimes grainy, sometimes soft, always moved by up to four pixels."""
    batch, _, height, width = pixels_B3HW.shape
    grainy, soft = torch.rand(2, generator=rng).tolist()
    if grainy < 0.5:
        pixels_B3HW = pixels_B3HW + torch.randn(pixels_B3HW.shape, generator=rng) * 0.12 * grainy
    if soft < 0.4:
        blurred = F.avg_pool2d(F.pad(pixels_B3HW, (1, 1, 1, 1), mode="replicate"), 3, 1)
        pixels_B3HW = torch.lerp(pixels_B3HW, blurred, 2.5 * soft)
    right, down = torch.randint(0, 9, (2,), generator=rng).tolist()
    padded = F.pad(pixels_B3HW, (4, 4, 4, 4), mode="replicate")
    return padded[:, :, down:down + height, right:right + width]


def train_evaluator(build: Build, vae: AutoencoderKL, file: Path, start_from: Evaluator | None = None) -> None:
    """Train, and write the state dict in fp16 to `file`. start_from: go on with these weights, at a lower rate."""
    size, device = build.size, build.device
    seen, seen_labels = reconstructions(build, vae)
    torch.manual_seed(0)
    evaluator = (start_from or Evaluator()).train().requires_grad_(True).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(evaluator.parameters(), weight_decay=0.02)
    saved = Saved(build, "evaluator", evaluator=evaluator, optimizer=optimizer)
    progress = Progress("evaluator", size.evaluator_steps)
    through_vae = int(size.evaluator_batch * THROUGH_VAE)
    peak = 1e-3 if start_from else 3e-3
    for step, (drawn, told) in batches(LabelledScenes(size.evaluator_batch - through_vae), saved.restore(), size.evaluator_steps,
                                       build):
        set_learning_rate(optimizer, peak * cosine(step, size.evaluator_steps, warmup=200, end=0.003))
        rng = torch.Generator().manual_seed(step)
        picked = torch.randint(0, len(seen), (through_vae,), generator=rng)
        batch = augment(torch.cat([drawn, seen[picked].float() / 127.5 - 1]), rng)
        asked = torch.cat([told, seen_labels[picked]]).to(device)
        guesses = evaluator(batch.to(device).contiguous(memory_format=torch.channels_last))
        loss = answer_loss(guesses, asked)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        saved.save_if_due(step + 1)
        progress.tell(step + 1, loss=loss)
    saved.save(size.evaluator_steps)
    weights = {key: value.detach().cpu().contiguous() for key, value in evaluator.state_dict().items()}
    save_file({key: value.half() if value.is_floating_point() else value for key, value in weights.items()}, file)


def answer_loss(guesses: list[Tensor], labels_B10: Tensor) -> Tensor:
    """Cross-entropy, summed over the ten answers; an answer that no picture of the batch has counts nothing."""
    losses = []
    for guess, label_B in zip(guesses, labels_B10.T, strict=True):
        summed = F.cross_entropy(guess, label_B, ignore_index=UNKNOWN, reduction="sum")
        losses.append(summed / (label_B != UNKNOWN).sum().clamp(min=1))
    return torch.stack(losses).sum()
