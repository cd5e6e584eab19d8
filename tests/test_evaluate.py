"""The report: grids of any number of pictures, a curve of any run, scores that say nothing where nothing was measured."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from aprendiz.evaluate import canvas, report, scores
from aprendiz.evaluate.curve import HEIGHT, WIDTH, Curve, best_save, draw_curve, smooth
from aprendiz.evaluate.grid import Card, before_after, grid
from aprendiz.evaluate.scores import Judged, MicroScorer, Scores, compare, scorer_for
from aprendiz.families import Base
from aprendiz.formats import checkpoint, png
from aprendiz.run import Run
from aprendiz.settings import BaseSettings, Job

ACCENT = np.array(canvas.ACCENT)


def picture(size: tuple[int, int] = (64, 64), colour: str = "red") -> Image.Image:
    return Image.new("RGB", size, colour)


def opened(file: Path) -> np.ndarray:
    with Image.open(file) as found:
        return np.asarray(found)


@pytest.fixture(scope="module")
def micro() -> Base:
    return checkpoint.open_base(BaseSettings(), torch.float32)


@pytest.fixture
def run(tmp_path: Path, user_folder: Path) -> Run:
    return Run.create(tmp_path, Job.read({"data": str(tmp_path), "output": {"name": "fish"}}), "")


# Grids.


@pytest.mark.parametrize("count", (1, 2, 3, 7, 24, 50))
def test_a_grid_holds_every_picture_whole_whatever_their_number(count: int) -> None:
    colours = [(5 * i, 255 - 5 * i, 128) for i in range(count)]
    cards = [Card(f"prompt {i}", (Image.new("RGB", (64, 48), colour),) * 2) for i, colour in enumerate(colours)]
    sheet = grid(cards, ("before", "after"), "A title", "A note")
    assert 480 <= sheet.width <= 1600
    found = {colour: number for number, colour in sheet.getcolors(sheet.width * sheet.height)}
    assert {found[colour] for colour in colours} == {2 * 176 * 132}  # each shown twice, enlarged from 64 x 48


def test_pictures_of_one_sheet_may_differ_in_size_and_keep_their_shape() -> None:
    sheet = np.asarray(before_after(["tall and wide"], [picture((40, 80))], [picture((80, 40), "blue")]))
    red, blue = (sheet == (255, 0, 0)).all(-1), (sheet == (0, 0, 255)).all(-1)
    assert 2 * red.any(0).sum() == red.any(1).sum() and blue.any(0).sum() == 2 * blue.any(1).sum()


def test_nothing_of_a_long_label_leaves_its_card() -> None:
    label = "a very long prompt " * 12 + "W" * 300
    sheet = np.asarray(before_after([label, "short"], [picture()] * 2, [picture()] * 2, "T" * 300))
    assert (sheet[:, -28:] == 255).all() and (sheet[:, :28] == 255).all()
    lines = canvas.wrap(label, 15, 360)
    assert len(lines) == 3 and lines[-1].endswith("...") and all(canvas.width_of(line, 15) <= 360 for line in lines)


@pytest.mark.parametrize("text", ("one two three", "", "W" * 200, "año çedilha “quoted” 猫 \U0001f41f"))
def test_wrapping_keeps_every_word_where_there_is_room(text: str) -> None:
    lines = canvas.wrap(text, 13, 120, most=99)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert all(canvas.width_of(line, 13) <= 120 for line in lines)


def test_a_text_without_spaces_is_wrapped_without_measuring_it_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[int] = []
    width_of = canvas.width_of

    def watched(text: str, size: int) -> float:
        measured.append(len(text))
        return width_of(text, size)

    monkeypatch.setattr(canvas, "width_of", watched)
    lines = canvas.wrap("one_tag," * 300, 15, 320)
    assert len(lines) == 3 and lines[2].endswith("...")
    assert all(width_of(line, 15) <= 320 < width_of(line + "one", 15) for line in lines)
    assert sum(measured) < 60 * 2400
    measured.clear()
    canvas.wrap("cat " * 20_000, 15, 320)
    assert len(measured) < 200


# The loss.


def events(steps: int, spike: int | None = None) -> list[dict[str, Any]]:
    drawn = random.Random(1)
    losses = {i: 9.0 if i == spike else 0.1 + math.exp(-i / 40) + 0.05 * drawn.random() for i in range(1, steps + 1)}
    found: list[dict[str, Any]] = [{"event": "step", "step": i, "steps": steps + 100, "loss": loss} for i, loss in losses.items()]
    found += [{"event": "validation", "step": i, "loss": 0.2 + min(0.1, abs(i - 100) / 1000)} for i in range(0, steps + 1, 50)]
    found += [{"event": "checkpoint", "step": i} for i in range(50, steps + 1, 50)]
    return [*found, {"event": "step", "step": 3, "loss": None}]


def test_a_curve_is_read_from_events_and_knows_the_best_save() -> None:
    curve = Curve.of(events(300))
    assert len(curve.losses) == 300 and curve.losses[0][0] == 1 and curve.steps == 400
    assert len(curve.validation) == 7 and list(curve.saves) == [50, 100, 150, 200, 250, 300] and curve.best == 100
    assert best_save([], [50]) is None and best_save([(60, 0.1)], [50]) is None


@pytest.mark.parametrize("given", [[], events(1), events(300), events(20000), events(300, spike=120)])
def test_any_run_has_a_curve(given: list[dict[str, Any]]) -> None:
    drawn = draw_curve(Curve.of(given), "fish: loss")
    assert drawn.size == (WIDTH, HEIGHT)
    strong = np.abs(np.asarray(drawn)[60:340].astype(int) - ACCENT).max(-1) < 32
    assert bool(strong.any()) == bool(given)


def test_a_single_spike_reaches_the_top_edge_and_does_not_press_the_rest_flat() -> None:
    without, spiked = (np.asarray(draw_curve(Curve.of(events(20000, spike=s)))) for s in (None, 10000))
    column = 64 + round((WIDTH - 64 - 32) * 10000 / 20100)
    near = slice(column - 3, column + 4)
    coloured = [int((np.abs(sheet[44:56, near].astype(int) - 255) > 40).any(-1).sum()) for sheet in (without, spiked)]
    assert coloured[0] == 0 and coloured[1] > 0
    # Far from the spike both look the same.
    assert np.abs(without[60:340, 300:400].astype(int) - spiked[60:340, 300:400]).mean() < 1


def test_smoothing_keeps_a_constant_and_the_mean_of_noise() -> None:
    assert smooth([0.5] * 100) == pytest.approx([0.5] * 100)
    noise = [random.Random(i).random() for i in range(4000)]
    assert all(abs(value - 0.5) < 0.12 for value in smooth(noise)) and smooth([]) == [] and smooth([2.0]) == [2.0]


# Scores.


def test_kept_is_what_was_right_before_and_still_is() -> None:
    before = Judged((False, False, False, True), (True, True, True, True, False))
    after = Judged((True, True, True, False), (True, True, True, False, True))
    assert compare(before, after) == Scores(0.25, 0.75, 0.75, 4)
    assert compare(Judged((), ()), Judged((), ())) == Scores(None, None, None, 0)


def test_scores_are_null_where_nobody_can_judge(tmp_path: Path, micro: Base) -> None:
    Scores().write(tmp_path / "new" / "scores.json")
    assert json.loads((tmp_path / "new" / "scores.json").read_text(encoding="utf-8")) == {
        "subject_before": None, "subject_after": None, "kept": None, "pictures": 0}
    assert Scores.read(tmp_path / "new" / "scores.json") == Scores()
    job = Job.read({"data": {"path": str(tmp_path), "class_word": "bicycle"}})
    assert scorer_for(micro, job) is None and scores.measure(micro, None, lambda on: None) == Scores()
    assert isinstance(scorer_for(micro, job.with_values(data={"class_word": "fish"})), MicroScorer)


def test_the_embedded_base_is_judged_and_has_never_seen_a_fish(micro: Base) -> None:
    switched: list[bool] = []
    found = scores.measure(micro, MicroScorer("fish", count=3), switched.append)
    assert switched == [False, True]
    assert found.subject_before == found.subject_after and (found.subject_before or 0.0) <= 0.2
    assert found.kept == 1.0 and found.pictures == 3


def test_the_scorer_asks_for_the_subject_by_its_trigger() -> None:
    scorer = MicroScorer("fish", called="zwx", count=4)
    assert all("zwx" in request.prompt and "fish" not in request.prompt for request in scorer.subject_requests())
    assert len({request.seed for request in (*scorer.subject_requests(), *scorer.other_requests())}) == 8


# The report.


def put_samples(run: Run, steps: tuple[int, ...]) -> None:
    for step in steps:
        for i, colour in enumerate(("red", "green")):
            told = png.Parameters(f"a {colour} fish", "", {"Steps": "20", "Sampler": "DDIM", "Seed": str(i)})
            png.save_over(picture((64, 64), colour if step else "gray"), report.sample_file(run.samples, step, i), told)


def test_the_report_is_written_from_the_runs_folder_alone(run: Run) -> None:
    put_samples(run, (0, 100, 200))
    for event in events(200):
        run.event(event["event"], **{name: value for name, value in event.items() if name != "event"})
    folder = report.write_report(run, Scores(0.0, 0.875, 0.97, 48))
    assert folder == run.report and sorted(file.name for file in folder.iterdir()) == ["grid.png", "loss.png", "scores.json"]
    sheet, curve = opened(folder / "grid.png"), opened(folder / "loss.png")
    assert curve.shape == (HEIGHT, WIDTH, 3)
    assert (sheet == (128, 128, 128)).all(-1).sum() == 2 * (sheet == (255, 0, 0)).all(-1).sum() == 2 * 176 * 176
    assert json.loads((folder / "scores.json").read_text(encoding="utf-8")) == {
        "subject_before": 0.0, "subject_after": 0.875, "kept": 0.97, "pictures": 48}
    # Written again without scores, it keeps those that were measured.
    report.write_report(run)
    assert Scores.read(folder / "scores.json").subject_after == 0.875


def test_a_run_without_samples_still_has_a_report(run: Run) -> None:
    put_samples(run, (0,))
    folder = report.write_report(run)
    assert sorted(file.name for file in folder.iterdir()) == ["loss.png", "scores.json"]


def test_the_sentence_never_claims_what_was_not_measured() -> None:
    assert report.score_sentence(Scores()) == "Same prompt and seed in each pair."
    told = report.score_sentence(Scores(0.0, 0.875, None, 48))
    assert "88% of 48 pictures, before in 0%" in told and "Of other pictures" not in told
    assert "97% are still right" in report.score_sentence(Scores(0.0, 0.875, 0.97, 48))


def test_a_sample_is_found_by_its_step_and_prompt(tmp_path: Path) -> None:
    file = report.sample_file(tmp_path, 200, 3)
    assert file.name == "step-000200-3.png"
    png.save_over(picture(), file, png.Parameters("a", "", {}))
    png.save_over(picture(colour="blue"), file)
    (tmp_path / "step-x.png").write_bytes(b"")
    assert report.samples(tmp_path) == [report.Sample(200, 3, file)]
    assert tuple(opened(file)[0, 0]) == (0, 0, 255)


