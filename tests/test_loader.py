"""Batches: a function of the step, full, of one bucket; every draw belongs to its sample."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from aprendiz.data.folder import Picture
from aprendiz.data.loader import Example, Plan
from aprendiz.draws import Draws


def plan(seed: int = 1, batch_size: int = 3) -> Plan:
    def picture(n: int) -> Picture:
        return Picture(file=Path(f"{n}.png"), size=(64, 64), digest=str(n), captions=("x",), mask=None, repeats=1, concept="",
                       class_word=None, validation=False)

    wide = [Example(picture(i), (128, 64), (i,), (0,), repeats=2 if i == 0 else 1) for i in range(5)]
    tall = [Example(picture(i), (64, 128), (i,), (0,)) for i in range(5, 9)]
    return Plan([*wide, *tall], batch_size, Draws(seed))


def test_an_epoch_shows_every_picture_as_often_as_its_repeats() -> None:
    made = plan()
    for epoch in range(3):
        seen = Counter(i for step in range(made.batches) for i in made.at(epoch * made.batches + step))
        assert seen[0] >= 2 and set(seen) == set(range(9))
        assert sum(seen.values()) == made.batches * 3 == 12


def test_a_batch_is_of_one_bucket() -> None:
    made = plan()
    for step in range(12):
        assert len({made.examples[i].bucket for i in made.at(step)}) == 1


def test_the_same_step_is_the_same_batch_in_any_order_of_asking() -> None:
    forwards = [plan().at(step) for step in range(20)]
    backwards = [plan().at(step) for step in reversed(range(20))]
    assert forwards == backwards[::-1]
    assert forwards != [plan(seed=2).at(step) for step in range(20)]
    assert len({tuple(map(tuple, plan().epoch(n))) for n in range(5)}) == 5


@pytest.mark.parametrize("other", [("noise", 4, 1), ("noise", 3, 2), ("time", 3, 1)])
def test_draws_differ_by_purpose_step_and_sample(other: tuple[str, int, int]) -> None:
    draws = Draws(7)
    first = draws.normal("noise", 3, 1, (4, 8))
    assert torch.equal(first, Draws(7).normal("noise", 3, 1, (4, 8)))
    assert not torch.equal(first, draws.normal(*other, (4, 8)))
    assert not torch.equal(first, Draws(8).normal("noise", 3, 1, (4, 8)))


def test_drawing_leaves_the_global_numbers_alone() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    Draws(1).normal("noise", 0, 0, (5,))
    Draws(1).uniform("time", 0, 0, ())
    assert torch.equal(torch.randn(3), expected)
