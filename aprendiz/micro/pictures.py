"""Captioned pictures of what the base has never seen, and fixed prompts that tell whether it was learned and what was lost.

Everything is drawn from a seed, so nothing is stored: the same call gives the same folder everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..errors import SettingsError
from .scenes import CATEGORIES, HELD_OUT_SHAPES, Scene, caption, category, draw, imagine

COUNT, SEED = 32, 1                    # the quick start's pictures
SUBJECT_SEED, OTHER_SEED, PRIOR_SEED = 777, 31337, 4321
NEON = "neon"
PURPLE_STAR = "striped purple star"    # made of words that the base knows: an embedding can learn it
SUBJECTS = (*HELD_OUT_SHAPES, NEON, PURPLE_STAR)


@dataclass(frozen=True)
class Prompt:
    """A prompt, the scene it asks for, and the seed of its noise."""

    text: str
    scene: Scene
    seed: int


def write_pictures(folder: Path, subject: str, count: int = COUNT, seed: int = SEED, called: str | None = None) -> list[Path]:
    """Write `subject-00.png` with its caption in `subject-00.txt`, and so on; the pictures, 128 x 128.

    subject: one of `SUBJECTS`. called: what captions say in place of the subject's own words, such as a trigger.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    scenes = [_imagine(subject, rng) for _ in range(count)]
    files = []
    for number, scene in enumerate(scenes):
        file = folder / f"{subject.replace(' ', '-')}-{number:02}.png"
        Image.fromarray(draw(scene, rng)).save(file)
        file.with_suffix(".txt").write_text(_caption(subject, scene, called) + "\n", encoding="utf-8")
        files.append(file)
    return files


def captions(subject: str, count: int = COUNT, seed: int = SEED, called: str | None = None) -> list[str]:
    """The captions that `write_pictures` writes, without drawing."""
    rng = np.random.default_rng(seed)
    return [_caption(subject, _imagine(subject, rng), called) for _ in range(count)]


def subject_prompts(subject: str, count: int = 48, seed: int = SUBJECT_SEED, called: str | None = None) -> list[Prompt]:
    """Prompts for a subject, different as far as they go, and then none of them a caption of the quick start's pictures."""
    rng = np.random.default_rng(seed)
    return _prompts(count, seed, lambda: _imagine(subject, rng), lambda scene: _caption(subject, scene, called),
                    captions(subject, called=called))


def other_prompts(count: int = 48, seed: int = OTHER_SEED) -> list[Prompt]:
    """Different prompts for one figure that the base knows: what must not be forgotten."""
    return _known_prompts(count, seed, ())


def prior_prompts(count: int = 48, seed: int = PRIOR_SEED) -> list[Prompt]:
    """Different prompts for the base's own pictures in prior preservation; none of them is one of `other_prompts`."""
    return _known_prompts(count, seed, {prompt.text for prompt in other_prompts()})


def category_prompts(name: str, count: int = 96) -> list[Prompt]:
    """Prompts of one of `scenes.CATEGORIES`, as figures of the base are measured on; the same scene may come twice."""
    seed = OTHER_SEED + CATEGORIES.index(name)
    rng = np.random.default_rng(seed)
    scenes = [imagine(rng, category(name)) for _ in range(count)]
    return [Prompt(_known_caption(scene), scene, seed * 1000 + number) for number, scene in enumerate(scenes)]


def _known_prompts(count: int, seed: int, taken: Collection[str]) -> list[Prompt]:
    rng = np.random.default_rng(seed)
    return _prompts(count, seed, lambda: imagine(rng, category("single_simple")), _known_caption, taken)


def _prompts(count: int, seed: int, imagine_one: Callable[[], Scene], describe: Callable[[Scene], str],
             taken: Collection[str]) -> list[Prompt]:
    prompts: list[Prompt] = []
    used = set(taken)
    tries = 0
    while len(prompts) < count:
        scene = imagine_one()
        text = describe(scene)
        tries += 1
        # Of some subjects little can be said: what there is is then asked for again, from other noise.
        if text not in used or tries > 20 * count:
            used.add(text)
            prompts.append(Prompt(text, scene, seed * 1000 + len(prompts)))
    return prompts


def _imagine(subject: str, rng: np.random.Generator) -> Scene:
    if subject in HELD_OUT_SHAPES:
        return imagine(rng, category("single_simple", shapes=(subject,)))
    if subject == NEON:
        return imagine(rng, category("single_simple", style=NEON))
    if subject == PURPLE_STAR:
        return _purple_star(imagine(rng, category("single_simple", shapes=("star",))))
    raise SettingsError("There are no pictures of '{subject}'. There are: {subjects}.",
                        subject=subject, subjects=", ".join(SUBJECTS))


def _purple_star(scene: Scene) -> Scene:
    background = scene.background
    if background.color == "purple":
        background = replace(background, color="white")
    figure = replace(scene.figures[0], color="purple", fill="striped", size="medium", radius=0.45)
    return replace(scene, figures=(figure,), background=background)


def _known_caption(scene: Scene) -> str:
    return caption(scene, np.random.default_rng(0), full=True, plain=True)  # plain and full: nothing is left to chance


def _caption(subject: str, scene: Scene, called: str | None) -> str:
    text = _known_caption(scene)
    if subject == NEON:
        return f"{text.split(' on a')[0]}, {called or 'neon style'}"
    return text.replace(subject, called) if called else text
