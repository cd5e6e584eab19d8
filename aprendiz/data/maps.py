"""The condition pictures of a run: read or computed for every cut, kept as bytes, handed out as numbers.

They are cut, mirrored and brought to a size exactly as their pictures are. Shapes: H W in pixels, K channels: 1 where all
colours are alike, 4 where the last one says what is hidden (0), else 3.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ..errors import AprendizError, Problem
from .cache import Cache, Cut, key_of
from .conditions import Recipe, compute
from .pictures import Pixels, condition_name, decode, fit, fit_beside, over, quietly, read

if TYPE_CHECKING:
    from ..settings import DataSettings
    from .folder import Dataset, Picture

KEPT_BYTES = 2_000_000_000  # of condition pictures in memory; beyond, they are read from the cache again
READERS = 8
SHAPES_DIFFER = 0.02  # by how much the logarithms of aspect ratios may differ
DARK = 8  # of 255: nothing brighter is black


class Maps:
    """The condition pictures of a run's cuts."""

    def __init__(self, recipe: Recipe, settings: DataSettings, cache: Cache) -> None:
        self.recipe, self.settings, self.cache = recipe, settings, cache
        self._kept: dict[str, Tensor] = {}
        self._bytes = 0
        self._lock = threading.Lock()

    def fill(self, cuts: Sequence[Cut], progress: Callable[[int, int], None]) -> None:
        """Make those that are not there yet."""
        for done, cut in enumerate(cuts, 1):
            self.of(cut)
            progress(done, len(cuts))

    def of(self, cut: Cut, keep: bool = True) -> Tensor:
        """The condition picture of a cut, (K, H, W), uint8. keep: for the next time it is asked for."""
        if not keep:
            return self._make(cut)
        key = self._key(cut)
        with self._lock:
            if key in self._kept:
                return self._kept[key]
        stored = self.cache.get(key)
        made = stored["condition"] if stored is not None else self._make(cut)
        if stored is None:
            self.cache.put(key, {"condition": made})
        with self._lock:
            if self._bytes + made.numel() <= KEPT_BYTES or self.cache.folder is None:
                self._kept[key] = made
                self._bytes += made.numel()
        return made

    def batch(self, cuts: Sequence[Cut], keep: bool = True) -> Tensor:
        """Those of several cuts of one bucket, (B, 3, H, W), as the network takes them."""
        return torch.stack([numbers(self.of(cut, keep)) for cut in cuts])

    def _key(self, cut: Cut) -> str:
        picture, settings = cut.picture, self.settings
        beside = picture.condition_digest if from_file(picture, self.recipe) else ""
        return key_of("condition", self.recipe.look(), picture.digest, beside, cut.bucket,
                      settings.crop, cut.at, cut.flip, settings.transparency, settings.background,
                      *(() if cut.resize else ("own size",)))

    def _make(self, cut: Cut) -> Tensor:
        made = condition_of(cut, self.settings, self.recipe)
        if cut.flip:
            made = made[:, ::-1]
        if made.shape[2] == 3 and bool((made == made[..., :1]).all()):
            made = made[..., :1]
        return torch.from_numpy(np.ascontiguousarray(made.transpose(2, 0, 1)))


def condition_of(cut: Cut, settings: DataSettings, recipe: Recipe) -> Pixels:
    """The condition picture of a cut, (H, W, 3 or 4), not mirrored."""
    if from_file(cut.picture, recipe):
        beside = read_condition(cut.picture, recipe.kind)
        return fit_beside(beside, cut.picture.size, cut.bucket, settings.crop, cut.at, cut.resize)
    rgb, _, _ = fit(read(cut.picture, settings)[0], None, cut.bucket, settings.crop, cut.at, cut.resize)
    return compute(rgb, recipe, f"{cut.picture.digest}/{cut.bucket}/{cut.at}")


def from_file(picture: Picture, recipe: Recipe) -> bool:
    """Whether a picture's condition picture is a file rather than computed."""
    return recipe.source == "files" or (recipe.source == "auto" and picture.condition is not None)


def read_condition(picture: Picture, kind: str) -> Pixels:
    """A condition picture's file; transparent places are hidden ones in inpainting, else black. Raises DatasetError."""
    assert picture.condition is not None
    rgb, alpha = decode(picture.condition, condition_name(picture))
    if kind == "inpaint" and alpha is not None:
        mask = np.array(alpha) > 127
        return np.concatenate([np.array(rgb) * mask[..., None], (mask * np.uint8(255))[..., None]], -1).astype(np.uint8)
    return np.array(rgb if alpha is None else over(rgb, alpha, (0, 0, 0)))


def numbers(condition_KHW: Tensor) -> Tensor:
    """What the network is given: (..., 3, H, W) in [0, 1], and -1 where something is hidden."""
    values = condition_KHW[..., :3, :, :].float() / 255
    if condition_KHW.shape[-3] == 4:
        values = torch.where(condition_KHW[..., 3:, :, :] > 127, values, -1.0)
    return values.expand(*values.shape[:-3], 3, *values.shape[-2:])


# What is wrong with them


def check(pictures: Sequence[Picture], recipe: Recipe) -> list[Problem]:
    """Condition pictures that are missing, unpaired, of another shape, black, or the picture itself; every file is read."""
    beside = [picture for picture in pictures if picture.condition is not None]
    if recipe.source == "computed" or (recipe.source == "auto" and not beside):
        return _unmade(recipe)
    if not beside:
        return [Problem("No picture has a condition picture. Put name.cond.png beside each name.png, or set condition_source to "
                        "computed.", {}, "method.condition_source")]
    problems = [Problem("{file} has no condition picture, but {count} others have. Put {right} beside it, or take it out.",
                        {"file": picture.name, "count": len(beside), "right": f"{os.path.splitext(picture.name)[0]}.cond.png"},
                        picture.name)
                for picture in pictures if picture.condition is None]
    problems += _copies(beside)
    with quietly(), ThreadPoolExecutor(min(READERS, os.cpu_count() or 1)) as pool:
        for found in pool.map(lambda picture: _read_one(picture, recipe.kind), beside):
            problems += found
    return problems


def check_prior(folder: Dataset, recipe: Recipe) -> list[Problem]:
    """What is wrong with the condition pictures of a folder of the base's own pictures."""
    lacking = sum(picture.condition is None for picture in folder.pictures)
    if recipe.source == "files" and lacking:
        return [Problem("Pictures in {folder} without a condition picture: {count}. Put name.cond.png beside each name.png, or "
                        "leave prior_data out.", {"count": lacking, "folder": str(folder.folder)}, "prior.prior_data")]
    return check(folder.pictures, recipe)


def check_made(count: int, recipe: Recipe) -> list[Problem]:
    """Why so many pictures that the base makes cannot have condition pictures."""
    if recipe.source != "files":
        return _unmade(recipe)
    if recipe.kind == "other":
        return [Problem("The base's own pictures ({count}) have no condition pictures, and none can be computed for the kind "
                        "{kind}. Set prior.pictures to 0.", {"count": count, "kind": recipe.kind}, "prior.pictures")]
    return [Problem("The base's own pictures ({count}) have no condition pictures. Set prior.pictures to 0, or condition_source "
                    "to computed.", {"count": count}, "prior.pictures")]


def _unmade(recipe: Recipe) -> list[Problem]:
    """Why conditions of this kind cannot be computed here, if they cannot."""
    from .annotators import problems
    return problems(recipe)


def _copies(beside: Sequence[Picture]) -> list[Problem]:
    """One condition picture for several different pictures says nothing about any."""
    counts = Counter(picture.condition_digest for picture in beside if picture.condition_digest)
    if len({picture.digest for picture in beside}) < 2 or len(counts) != 1 or max(counts.values()) < 2:
        return []
    return [Problem("All condition pictures are the same file's content, so nothing can be learned from them. Make them anew "
                    "with `python -m aprendiz control-maps`.", {}, "method.condition_source")]


def _read_one(picture: Picture, kind: str) -> list[Problem]:
    assert picture.condition is not None
    name = condition_name(picture)
    known = {"file": name, "picture": picture.name}
    if not Path(picture.condition).is_file():
        return [Problem("{file}, the condition picture of {picture}, is not there. Correct its name, or make it with "
                        "`python -m aprendiz control-maps`.", known, name)]
    if picture.condition_digest == picture.digest:
        return [_same(known, name)]
    try:
        condition = read_condition(picture, kind)
    except AprendizError as error:
        return error.problems
    width, height = condition.shape[1], condition.shape[0]
    sizes = {**known, "size": f"{width} x {height}", "wanted": "{} x {}".format(*picture.size)}
    if abs(math.log(width / height * picture.size[1] / picture.size[0])) > SHAPES_DIFFER:
        return [Problem("{file} is {size} pixels, but its picture {picture} is {wanted}. Give both the same shape.", sizes, name)]
    if kind != "inpaint" and condition[..., :3].max() < DARK:
        return [Problem("{file} is all black, so it says nothing about {picture}. Make it anew, or take both out.", known, name)]
    if (width, height) != picture.size:
        return [Problem("{file} is {size} pixels, but its picture {picture} is {wanted}, so it is brought to that size.",
                        sizes, name, warning=True)]
    rgb, alpha = decode(picture.file, picture.name)
    if alpha is None and condition.shape[2] == 3 and np.array_equal(condition, np.array(rgb)):
        return [_same(known, name)]
    return []


def _same(known: dict[str, str], name: str) -> Problem:
    return Problem("{file} is the same as its picture {picture}, so there is nothing to learn. Make condition pictures with "
                   "`python -m aprendiz control-maps`.", known, name)
