"""ControlNet on the embedded base: shown outlines, it learns to draw along them. The prompts name colours only.

The quick proof asks for the noise that the network predicts; the long one (quality lane) for the edges of finished pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from lessons import teach
from PIL import Image

from aprendiz.data.conditions import Recipe, canny, compute, edge_f1
from aprendiz.families import Base, PictureSize
from aprendiz.formats import checkpoint, controlnet
from aprendiz.generate import draw
from aprendiz.micro.scenes import Scene, category, imagine
from aprendiz.micro.scenes import caption as describe
from aprendiz.micro.scenes import draw as paint
from aprendiz.nets.controlnet import Control
from aprendiz.objectives import signal_level
from aprendiz.request import Request
from aprendiz.settings import BaseSettings

RECIPE = Recipe(thickness=1)
WHOLE = PictureSize((128, 128), (0, 0), (128, 128))


@dataclass(frozen=True)
class Example:
    """A drawn scene, its outlines, and a prompt that names its colours but no shape, place or size."""

    picture: np.ndarray
    outlines: np.ndarray
    prompt: str


def scenes(count: int, seed: int) -> tuple[list[Scene], list[np.ndarray], list[str]]:
    """One or two plain figures, drawn and described in full."""
    random = np.random.default_rng(seed)
    found = [imagine(random, category("pair_simple" if n % 2 else "single_simple")) for n in range(count)]
    return found, [paint(scene, random) for scene in found], [describe(scene, random) for scene in found]


def folder_of(folder: Path, count: int, seed: int = 1) -> Path:
    """A folder to learn from: pictures and their captions, conditions computed."""
    folder.mkdir(parents=True)
    _, pictures, captions = scenes(count, seed)
    for number, (picture, caption) in enumerate(zip(pictures, captions)):
        Image.fromarray(picture).save(folder / f"{number:04}.png")
        (folder / f"{number:04}.txt").write_text(caption, encoding="utf-8")
    return folder


def unseen(count: int, seed: int = 99) -> list[Example]:
    """Scenes that nothing was learned from."""
    made, pictures, _ = scenes(count, seed)
    prompts = [f"{' and '.join(figure.color for figure in scene.figures)} on {scene.background.color}" for scene in made]
    return [Example(picture, compute(picture, RECIPE, ""), prompt) for picture, prompt in zip(pictures, prompts)]


def pixels(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float()


@torch.no_grad()
def noise_loss(base: Base, examples: Sequence[Example], branch: torch.nn.Module | None, shift: int = 0) -> float:
    """Mean squared error of the predicted noise, at timestep 800. shift: each is shown the outlines of so many further on."""
    latents = base.family.encode_images(base, pixels([one.picture for one in examples]) / 127.5 - 1)[0]
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    states = [base.family.encode_tokens(base, base.family.tokenize(base, [one.prompt])) for one in examples]
    conditioning = base.family.collate(states, [WHOLE] * len(examples))
    signal = signal_level(base.schedule, False)[800].float()
    noisy, timesteps = signal.sqrt() * latents + (1 - signal).sqrt() * noise, torch.full((len(examples),), 800)
    residuals = None
    if branch is not None:
        outlines = (pixels([one.outlines for one in examples]) / 255).roll(shift, 0)
        residuals = base.family.control(branch, noisy, timesteps, conditioning, outlines)
    return float((base.family.predict(base, noisy, timesteps, conditioning, residuals) - noise).square().mean())


def edges(base: Base, examples: Sequence[Example], branch: torch.nn.Module | None) -> float:
    """Mean edge F1 of pictures drawn for the examples' prompts, against the edges of the examples themselves."""
    controls = [() if branch is None else (Control(branch, Image.fromarray(one.outlines)),) for one in examples]
    asked = [Request(prompt=one.prompt, seed=500 + n, guidance=4.0, controls=controls[n]) for n, one in enumerate(examples)]
    return agreement(examples, [np.asarray(picture) for picture in draw(base, asked)])


def agreement(examples: Sequence[Example], drawn: Sequence[np.ndarray]) -> float:
    return sum(edge_f1(canny(one.picture), canny(picture)) for one, picture in zip(examples, drawn)) / len(examples)


def ceiling(base: Base, examples: Sequence[Example]) -> float:
    """The same of the examples seen through the VAE: the best that can be drawn."""
    latents = base.family.encode_images(base, pixels([one.picture for one in examples]) / 127.5 - 1)[0]
    with torch.no_grad():
        back = ((base.family.decode(base, latents) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return agreement(examples, list(back))


def learn(folder: Path, count: int, **settings: object) -> Path:
    run = teach(folder / "out", folder_of(folder / "scenes", count), method="controlnet", line_thickness=1,
                sample_prompts=["red on white"], name="micro-canny", **settings)
    return run.file


def micro() -> Base:
    return checkpoint.open_base(BaseSettings(), torch.float32)


# The noise loss after 100 steps of 8 at high timesteps as a share of that without control, of training seeds 42, 43, 44: shown
# their own outlines .64, .70, .63; shown another scene's 1.31, 1.16, 1.22. Half of the mean gain, and of the mean gap, is asked.
HALF_THE_GAIN, HALF_THE_GAP = 0.17, 0.28


@pytest.mark.methods
def test_in_a_minute_a_controlnet_learns_to_heed_its_outlines(tmp_path: Path) -> None:
    file = learn(tmp_path, 96, steps=100, batch_size=8, learning_rate=1e-3, warmup_steps=5, timestep_min=600)
    base, examples = micro(), unseen(48)
    branch = controlnet.open_branch(file, base).branch
    without = noise_loss(base, examples, None)
    right, wrong = (noise_loss(base, examples, branch, shift) / without for shift in (0, 1))
    print(f"share of the noise loss with its own outlines {right:.3f}, with another's {wrong:.3f}")
    assert 1 - right >= HALF_THE_GAIN
    assert wrong - right >= HALF_THE_GAP


# Of training seeds 42, 43, 44 the F1 went from .206 to .641, .628, .662; the VAE shows .939. Half of the mean gain is .22; two
# fifths of the way, .29, ask for more.
@pytest.mark.quality
def test_drawn_edges_come_two_fifths_of_the_way_to_what_the_vae_can_show(tmp_path: Path) -> None:
    file = learn(tmp_path, 1000, steps=1200, batch_size=16, learning_rate=1e-3, schedule="cosine", warmup_steps=30)
    base, examples = micro(), unseen(48)
    before, best = edges(base, examples, None), ceiling(base, examples)
    after = edges(base, examples, controlnet.open_branch(file, base).branch)
    print(f"edge F1 without control {before:.3f}, with {after:.3f}, the VAE's own {best:.3f}")
    assert after - before >= 0.4 * (best - before)
