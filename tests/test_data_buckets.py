"""Buckets: equal areas, whole multiples, the nearest shape."""

from __future__ import annotations

import math
import random

import pytest

from aprendiz.data import buckets
from aprendiz.settings import DataSettings

GRIDS = [(512, 64), (768, 64), (1024, 64), (1024, 32), (128, 8), (128, 16), (256, 8), (576, 64), (640, 64)]


@pytest.mark.parametrize(("resolution", "step"), GRIDS)
def test_sides_are_multiples_and_areas_about_equal_and_never_above_the_squares(resolution: int, step: int) -> None:
    for width, height in buckets.shapes(resolution, step):
        assert width % step == 0 and height % step == 0 and min(width, height) >= step
        assert 0.75 * resolution ** 2 <= width * height <= resolution ** 2
        assert 1 / buckets.MAX_ASPECT <= width / height <= buckets.MAX_ASPECT


@pytest.mark.parametrize(("resolution", "step"), GRIDS)
def test_shapes_come_in_pairs_hold_the_square_and_leave_no_wide_gap(resolution: int, step: int) -> None:
    found = buckets.shapes(resolution, step)
    assert (resolution, resolution) in found and {(height, width) for width, height in found} == set(found)
    aspects = [width / height for width, height in found]
    assert aspects == sorted(aspects) and aspects[-1] >= 3.2
    # Two steps from square to the next shape: one side a step longer, the other a step shorter.
    widest = max(b / a for a, b in zip(aspects, aspects[1:]))
    assert widest <= (resolution + 2 * step) / (resolution - 2 * step)


@pytest.mark.parametrize(("resolution", "step"), GRIDS)
def test_every_picture_gets_the_nearest_shape(resolution: int, step: int) -> None:
    draw = random.Random(0)
    sizes = [(draw.randint(1, 5000), draw.randint(1, 5000)) for _ in range(300)]
    planned = buckets.plan(sizes, resolution, step, True, True)
    for size, target in zip(sizes, planned):
        assert target is not None
        aspect = math.log(size[0] / size[1])
        distances = {shape: abs(math.log(shape[0] / shape[1]) - aspect) for shape in buckets.shapes(resolution, step)}
        assert distances[target] <= min(distances.values()) + 1e-8


def test_little_is_cut_away_between_one_to_four_and_four_to_one() -> None:
    draw = random.Random(1)
    for _ in range(500):
        aspect = math.exp(draw.uniform(-math.log(4), math.log(4)))
        size = (round(2000 * aspect), 2000)
        target = buckets.nearest(size, buckets.shapes(1024, 64))
        assert 0 <= buckets.cut_away(size, target) < 0.13


def test_very_long_pictures_get_the_longest_shape() -> None:
    assert buckets.plan([(10000, 10), (10, 10000)], 512, 64, True, True) == [(1024, 256), (256, 1024)]


def test_a_shape_between_two_is_decided_alike_whichever_way_it_lies() -> None:
    shapes = buckets.shapes(512, 64)
    for width in range(300, 900, 7):
        for height in (400, 512, 640):
            assert buckets.nearest((height, width), shapes) == buckets.nearest((width, height), shapes)[::-1]


def test_without_buckets_all_are_square() -> None:
    assert buckets.plan([(100, 900), (512, 512), (2000, 30)], 512, 64, False, True) == [(512, 512)] * 3


def test_small_pictures_are_left_out_where_enlarging_is_off() -> None:
    sizes = [(512, 512), (511, 512), (600, 440), (600, 448), (4000, 100), (4000, 300)]
    assert buckets.plan(sizes, 512, 64, True, False) == [(512, 512), None, None, (576, 448), None, (1024, 256)]
    assert None not in buckets.plan(sizes, 512, 64, True, True)


def test_a_resolution_between_multiples_goes_down_to_one() -> None:
    assert buckets.plan([(100, 100)], 600, 64, False, True) == [(576, 576)]
    assert all(width * height <= 600 * 600 for width, height in buckets.shapes(600, 64))


def test_a_resolution_below_the_step_gives_one_square_of_it() -> None:
    assert buckets.shapes(64, 128) == ((128, 128),)


def test_no_pictures_give_no_plan() -> None:
    assert buckets.plan([], 512, 64, True, True) == []


def test_pictures_that_keep_their_size_are_cut_to_whole_steps_and_enlarged_only_to_one() -> None:
    keeping = DataSettings(resize=False)
    assert buckets.planned(keeping, [(300, 200), (640, 4096), (40, 130)], 512, 64) == [(256, 192), (640, 4096), (64, 128)]
    assert buckets.planned(DataSettings(resize=False, allow_upscale=False), [(40, 130), (64, 64)], 512, 64) == [None, (64, 64)]
    assert buckets.planned(DataSettings(), [(300, 200)], 512, 64) == buckets.plan([(300, 200)], 512, 64, True, True)
