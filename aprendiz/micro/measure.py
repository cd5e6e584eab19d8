"""How often prompts are followed: the subject that was taught, and the rest that must not be forgotten.

Pictures are made by whoever asks, from a prompt's text and seed, with the sampler settings below; the evaluator counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ..nets.evaluator import Evaluator, Right, judge, score
from .pictures import NEON, PURPLE_STAR, Prompt, category_prompts, other_prompts, subject_prompts
from .scenes import ALL_SHAPES, Choices, Picture, Scene, category, draw, imagine

if TYPE_CHECKING:
    from PIL.Image import Image

SAMPLER, STEPS, GUIDANCE, SIZE = "ddim", 20, 4.0, 128
Generate = Callable[[Sequence[Prompt]], Sequence["Image | Picture"]]
Through = Callable[[Sequence[Picture]], Sequence[Picture]]


def measure(generate: Generate, subject: str, called: str | None = None, count: int = 48) -> dict[str, float]:
    """Shares in [0, 1], from `count` pictures each: {"subject": the subject is there, "other": known figures are right}.

    subject: one of `pictures.SUBJECTS`; called: the words or the trigger that it was taught under.
    """
    prompts = subject_prompts(subject, count, called=called)
    return {"subject": share(subject_is_there(generate(prompts), prompts, subject)), "other": measure_others(generate, count)}


def measure_others(generate: Generate, count: int = 48) -> float:
    """How often one figure that the base knows comes out right, with its colour and its background, in [0, 1]."""
    prompts = other_prompts(count)
    return share(figure_is_right(score(generate(prompts), [prompt.scene for prompt in prompts])))


def subject_is_there(pictures: Sequence[Image | Picture], prompts: Sequence[Prompt], subject: str) -> list[bool]:
    """Whether each picture shows the subject: its shape, the neon style, or colour, fill and shape of the purple star."""
    if subject == NEON:
        return [verdict.style == NEON for verdict in judge(pictures)]
    right = score(pictures, [prompt.scene for prompt in prompts])
    there = right.layout & right.shapes
    if subject == PURPLE_STAR:
        there &= right.colors & right.fills
    return list(there.tolist())


def figure_is_right(right: Right) -> list[bool]:
    """Whether each picture shows its figure, in its colour, on its background."""
    return list((right.layout & right.shapes & right.colors & right.background).tolist())


def share(counted: Sequence[bool]) -> float:
    """The share of those that are true; 0 of none."""
    return sum(counted) / max(1, len(counted))


@dataclass(frozen=True)
class Followed:
    """How often prompts of one category are followed, in [0, 1]. figures: shape, colour and place of every one."""

    figures: float
    fills: float
    background: float
    everything: float

    @classmethod
    def of(cls, right: Right) -> Followed:
        """Shares of what the evaluator found right."""
        return cls(share((right.layout & right.shapes & right.colors).tolist()), share((right.layout & right.fills).tolist()),
                   share(right.background.tolist()), share(right.everything.tolist()))


def follow(generate: Generate, name: str, count: int = 96, evaluator: Evaluator | None = None) -> Followed:
    """How a base follows prompts of one of `scenes.CATEGORIES`."""
    prompts = category_prompts(name, count)
    return Followed.of(score(generate(prompts), [prompt.scene for prompt in prompts], evaluator))


def ceiling(name: str, count: int = 96, evaluator: Evaluator | None = None, through: Through | None = None) -> Followed:
    """The same of drawn pictures: what the evaluator can see at best. through: such as a VAE's reconstruction."""
    rng = np.random.default_rng(5)
    scenes = [prompt.scene for prompt in category_prompts(name, count)]
    pictures: Sequence[Picture] = [draw(scene, rng) for scene in scenes]
    return Followed.of(score(through(pictures) if through else pictures, scenes, evaluator))


def recall(shape: str, name: str = "single_simple", count: int = 500, evaluator: Evaluator | None = None) -> float:
    """The share of drawn pictures with one figure of this shape in which the evaluator finds it."""
    pictures, scenes = _drawn(category(name, shapes=(shape,)), 501, count)
    right = score(pictures, scenes, evaluator)
    return share((right.layout & right.shapes).tolist())


def false_positives(shape: str, name: str = "single_simple", count: int = 1000, evaluator: Evaluator | None = None) -> float:
    """The share of drawn pictures of other shapes in which the evaluator finds this one."""
    others = tuple(other for other in ALL_SHAPES if other != shape)
    pictures, _ = _drawn(category(name, shapes=others), 502, count)
    return share([shape in verdict.shapes for verdict in judge(pictures, evaluator)])


def _drawn(choices: Choices, seed: int, count: int) -> tuple[list[Picture], list[Scene]]:
    rng = np.random.default_rng(seed)
    scenes = [imagine(rng, choices) for _ in range(count)]
    return [draw(scene, rng) for scene in scenes], scenes
