"""Walks: the frames stand where they should, begin and end at what `generate` draws, and become files that play."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_flow
import torch
from PIL import Image

from aprendiz import registry, walk
from aprendiz.errors import ProblemsError, RunError, SettingsError
from aprendiz.families import Base
from aprendiz.formats import png
from aprendiz.formats.png import Parameters
from aprendiz.generate import draw
from aprendiz.request import AppliedLora, Request
from aprendiz.walk import Walk

SMALL = Request(prompt="", width=32, height=32, steps=2)


def tiny(family: str) -> Base:
    return tiny_flow.FAMILY.tiny(0) if family == "tiny_flow" else registry.families()[family].tiny(0)


def furthest(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other).astype(int)).max())


@pytest.fixture(scope="module")
def frames() -> list[Image.Image]:
    return [Image.new("RGB", (32, 24), (20 * i, 100, 255 - 20 * i)) for i in range(7)]


def test_a_walks_file_tells_its_first_picture_and_every_stop(tmp_path: Path, frames: list[Image.Image]) -> None:
    asked = Walk(prompts=("a cat, red", "a dog"), seeds=(5, 6), request=SMALL)
    told = walk.parameters(tiny("sd1"), asked, [AppliedLora("fish", 0.5, "1234")])
    assert (told.prompt, told.settings["Seed"], told.settings["Size"]) == ("a cat, red <lora:fish:0.5>", "5", "32x32")
    assert png.read(walk.save(frames, tmp_path / "walk.webp", 10, text=told)) == told
    with Image.open(walk.save(frames, tmp_path / "walk.gif", 10, text=told)) as picture:
        written = Parameters.parse(picture.info["comment"].decode())
    assert (written.settings["Walk prompts"], written.settings["Walk seeds"]) == ('["a cat, red", "a dog"]', "5, 6")


@pytest.mark.parametrize("family", ("sd1", "sdxl", "tiny_flow"))
def test_a_walk_passes_through_the_pictures_of_its_stops_and_comes_back(family: str) -> None:
    base, told = tiny(family), []
    asked = Walk(prompts=("a cat", "a dog"), seeds=(1, 2), frames=6, request=SMALL)
    drawn = walk.walk(base, asked, lambda *at: told.append(at), batch_size=4)
    stops = draw(base, [replace(SMALL, prompt="a cat", seed=1), replace(SMALL, prompt="a dog", seed=2)])
    assert len(drawn) == 6 and told[-1] == (12, 12)
    assert furthest(drawn[0], stops[0]) <= 1 and furthest(drawn[3], stops[1]) <= 1
    assert all(furthest(one, other) > 0 for one, other in zip(drawn, drawn[1:]))
    # There and back again is the same way.
    assert furthest(drawn[1], drawn[5]) <= 1 and furthest(drawn[2], drawn[4]) <= 1


def test_without_a_loop_the_last_frame_is_the_last_stop() -> None:
    base = tiny("sd1")
    drawn = walk.walk(base, Walk(prompts=("a cat",), seeds=(1, 2, 3), frames=5, loop=False, request=SMALL))
    assert len(drawn) == 5
    assert furthest(drawn[4], draw(base, [replace(SMALL, prompt="a cat", seed=3)])[0]) <= 1
    assert furthest(drawn[2], draw(base, [replace(SMALL, prompt="a cat", seed=2)])[0]) <= 1


def test_frames_stand_at_even_paces() -> None:
    assert walk.positions(4, 2, loop=True) == [0, 0.5, 1, 1.5]
    assert walk.positions(5, 3, loop=False) == [0, 0.5, 1, 1.5, 2]
    assert max(walk.positions(7, 3, loop=False)) == 2


@pytest.mark.parametrize("share", (0.0, 0.3, 0.5, 0.8, 1.0))
def test_noise_keeps_its_strength_all_the_way(share: float) -> None:
    start, end = (walk.noise(seed, (4, 32, 32)) for seed in (1, 2))
    between = walk.slerp(start, end, share)
    assert abs(float(between.std()) - 1) < 0.05
    assert torch.equal(walk.slerp(start, start, share), start)
    assert torch.allclose(walk.slerp(start, end, 1.0), end, atol=1e-5)


@pytest.mark.parametrize("suffix", (".gif", ".webp"))
@pytest.mark.parametrize("loop", (True, False))
def test_the_file_holds_every_frame_at_its_pace(suffix: str, loop: bool, frames: list[Image.Image], tmp_path: Path) -> None:
    file = walk.save(frames, tmp_path / "new" / f"walk{suffix}", 10, loop)
    again = walk.save(frames, tmp_path / "new" / f"walk{suffix}", 10, loop)
    assert (file.name, again.name) == (f"walk{suffix}", f"walk-2{suffix}")
    with Image.open(file) as opened:
        durations = []
        for i in range(opened.n_frames):  # type: ignore[attr-defined]
            opened.seek(i)
            assert furthest(opened.convert("RGB"), frames[i]) < 12
            durations.append(opened.info["duration"])
        assert opened.n_frames == 7 and durations == [100] * 7  # type: ignore[attr-defined]
        assert (opened.info.get("loop") == 0) == loop


def test_an_mp4_holds_every_frame_at_its_pace(frames: list[Image.Image], tmp_path: Path) -> None:
    import imageio_ffmpeg as ffmpeg
    file = walk.save(frames, tmp_path / "walk.mp4", 10)
    count, seconds = ffmpeg.count_frames_and_secs(str(file))
    assert count == 7 and abs(seconds - 0.7) < 0.11


def test_an_mp4_without_ffmpeg_names_what_to_install(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: Callable[[str, object], None]) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(SettingsError, match="pip install imageio-ffmpeg") as raised:
        walk.check_file(tmp_path / "new" / "walk.mp4")
    answers("walk to .mp4 without ffmpeg", raised.value)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("changes,sentence", [
    ({"prompts": ("a cat",), "seeds": (1,)}, "A walk needs somewhere to go"),
    ({"prompts": ()}, "A walk needs a prompt"),
    ({"seeds": (1, -2)}, "The seeds are 1, -2."),
    ({"seeds": (1, 2**63)}, "seed is 9223372036854775808. It must lie between 0 and 9223372036854775807."),
    ({"frames": 1}, "frames is 1. It must lie between 2"),
    ({"request": replace(SMALL, width=30)}, "width is 30, which is no multiple of 8."),
    ({"request": replace(SMALL, image=Image.new("RGB", (8, 8)))}, "A walk begins with noise"),
])
def test_an_impossible_walk_is_refused_in_words(
        changes: dict[str, Any], sentence: str, answers: Callable[[str, object], None]) -> None:
    asked = replace(Walk(prompts=("a cat", "a dog"), request=SMALL), **changes)
    with pytest.raises(ProblemsError) as raised:
        walk.walk(tiny("sd1"), asked)
    assert sentence in str(raised.value)
    answers(f"walk with {', '.join(changes)}", raised.value)


def test_a_walk_to_a_place_or_of_a_kind_that_cannot_be_written_is_refused(
        tmp_path: Path, answers: Callable[[str, object], None]) -> None:
    with pytest.raises(SettingsError, match=r"cannot be written as walk\.avi") as raised:
        walk.check_file(tmp_path / "walk.avi")
    answers("walk to .avi", raised.value)
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written"):
        walk.check_file(tmp_path / "file" / "walk.gif")
