"""Train the text encoder on text alone, before the U-Net sees it.

Attention slots read the token states and must name what stands in the centre, at the top, the bottom, the left and the
right, and the background. Without this stage colours and places were bound to the wrong object for most of the U-Net's
training.

Shapes: B batch, T tokens, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .scenes import BACKGROUNDS, COLORS, FILLS, SHAPES, SIZES, Scene, caption, imagine
from .tokens import MAX_TOKENS
from .training import Build, Progress, Saved, batches, cosine, set_learning_rate

WIDTH, SHORT = 96, 32          # features; tokens that hold any caption of a scene
PLACES = {None: 0, "above": 1, "below": 2, "left": 3, "right": 4}
OPPOSITE = {"above": "below", "below": "above", "left": "right", "right": "left"}
FIGURE = (len(SHAPES) + 1, len(COLORS) + 1, len(FILLS) + 1)                       # the last answer of each: nothing is there
WHOLE = (len(SIZES), len(BACKGROUNDS), len(COLORS), len(COLORS) + 1)              # size, background: kind, colour, second colour
WEIGHTS = (*[1.0] * 15, 0.3, 0.5, 1.0, 1.0)


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """A random text encoder of micro's shape: CLIP's own architecture, 4 layers of 96."""
    return CLIPTextModel(CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=WIDTH * 4, num_hidden_layers=4, num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS, hidden_act="quick_gelu", projection_dim=WIDTH, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.eos_token_id))


def token_ids(tokenizer: CLIPTokenizer, texts: Sequence[str], length: int = MAX_TOKENS) -> Tensor:
    """Ids, B T, padded with the end token as in SD 1.x."""
    return torch.tensor(tokenizer(list(texts), padding="max_length", max_length=length, truncation=True).input_ids)


class Slots(nn.Module):
    """Six learned queries read the token states: five places, and the picture as a whole."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(6, WIDTH) * 0.5)
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=True)
        self.mix = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 192), nn.GELU(), nn.Linear(192, 192))
        self.figure, self.whole = nn.Linear(192, sum(FIGURE)), nn.Linear(192, sum(WHOLE))

    def forward(self, states_BTD: Tensor) -> list[Tensor]:
        """The answers, in the order of `slot_labels`."""
        read, _ = self.attention(self.queries.expand(len(states_BTD), -1, -1), states_BTD, states_BTD, need_weights=False)
        read = self.mix(read)
        answers = [answer for place in range(5) for answer in self.figure(read[:, place]).split(FIGURE, 1)]
        return answers + list(self.whole(read[:, 5]).split(WHOLE, 1))


def slot_labels(scene: Scene) -> list[int]:
    """Shape, colour and fill at each of five places, then size, background kind and its two colours."""
    colors = list(COLORS)
    answers = [size - 1 for size in FIGURE] * 5
    for number, figure in enumerate(scene.figures):
        relation = OPPOSITE[scene.relation] if scene.relation and number else scene.relation
        at = 3 * PLACES[relation]
        answers[at:at + 3] = [SHAPES.index(figure.shape), colors.index(figure.color), FILLS.index(figure.fill)]
    background = scene.background
    second = colors.index(background.second) if background.second else len(colors)
    answers += [SIZES.index(scene.figures[0].size), BACKGROUNDS.index(background.kind), colors.index(background.color), second]
    return answers


class Captions(Dataset[tuple[Tensor, Tensor]]):
    """Item `step` is a batch: token ids and what the slots must answer. Now and then padded to the full length."""

    def __init__(self, tokenizer: CLIPTokenizer, batch: int) -> None:
        self.tokenizer, self.batch = tokenizer, batch

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        rng = np.random.default_rng((3, step))
        long = rng.random() < 0.08
        scenes = [imagine(rng) for _ in range(self.batch // 2 if long else self.batch)]
        texts = [caption(scene, rng) for scene in scenes]
        ids = token_ids(self.tokenizer, texts, MAX_TOKENS if long else SHORT)
        return ids, torch.tensor([slot_labels(scene) for scene in scenes])


def train_text_encoder(build: Build, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Train from nothing and write the model to `folder`; the slots are thrown away."""
    size, device = build.size, build.device
    torch.manual_seed(0)
    encoder, slots = new_text_encoder(tokenizer).to(device).train(), Slots().to(device)
    parameters = [*encoder.parameters(), *slots.parameters()]
    optimizer = torch.optim.AdamW(parameters, betas=(0.9, 0.99), weight_decay=0.02)
    saved = Saved(build, "text", encoder=encoder, slots=slots, optimizer=optimizer)
    progress = Progress("text encoder", size.text_steps)
    for step, (ids_BT, told) in batches(Captions(tokenizer, size.text_batch), saved.restore(), size.text_steps, build):
        set_learning_rate(optimizer, 1.5e-3 * cosine(step, size.text_steps, warmup=100))
        answers = slots(encoder(ids_BT.to(device))[0])
        told = told.to(device)
        loss = torch.stack([weight * F.cross_entropy(answer, told[:, at])
                            for at, (answer, weight) in enumerate(zip(answers, WEIGHTS, strict=True))]).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        saved.save_if_due(step + 1)
        progress.tell(step + 1, loss=loss, **accuracy(answers, told))
    saved.save(size.text_steps)
    encoder.save_pretrained(folder)


def accuracy(answers: list[Tensor], told: Tensor) -> dict[str, Any]:
    """The share of captions whose figures, and whose background, are all named rightly."""
    right = torch.stack([answer.argmax(1) for answer in answers], 1) == told
    return {"figures": right[:, :15].all(1).float().mean(), "background": right[:, 16:].all(1).float().mean()}
