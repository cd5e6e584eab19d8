"""What a job comes to, told before anything heavy loads: memory as the run itself counts it, time as it was measured before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lessons import pictures, teach
from PIL import Image

from aprendiz import devices, foresight, speeds
from aprendiz.check import check
from aprendiz.data.folder import scan
from aprendiz.estimate import Work
from aprendiz.formats.weights import Weights
from aprendiz.run import Run
from aprendiz.settings import Job
from aprendiz.speeds import Speed

HERE = Speed("card", "lora", 1_000_000, 65536)


@pytest.mark.parametrize("method", [{}, {"train_text_encoder": True}, {"method": "textual_inversion", "trigger": "zwx"},
                                    {"method": "controlnet"}])
def test_memory_is_told_from_headers_alone_and_is_what_the_run_itself_counts(tmp_path: Path, method: dict[str, Any],
                                                                             monkeypatch: pytest.MonkeyPatch) -> None:
    run = teach(tmp_path, pictures(tmp_path / "red"), **{"steps": 1, "batch_size": 2, **method})
    counted = json.loads((run.folder / "memory.json").read_text(encoding="utf-8"))["bytes"]
    read: list[str] = []
    whole = Weights.read

    def noted(self: Weights, name: str) -> torch.Tensor:
        tensor = whole(self, name)
        read.extend([name] if not tensor.is_meta else [])
        return tensor

    monkeypatch.setattr(Weights, "read", noted)
    told = foresight.foresee(run.job(), 4)
    assert told.wanted == told.needed == counted["total"] - counted["kept"] and told.steps == 1
    assert all("token_embedding" in name for name in read)


def test_what_is_more_than_is_free_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1_000_000)
    job = Job.read({"data": str(tmp_path), "steps": 5, "batch_size": 2})
    told = foresight.foresee(job, 4)
    assert told.fitted and told.needed is not None and told.wanted is not None
    assert told.wanted > told.needed > 1_000_000
    assert "That is more than is free. Lower resolution, batch size or rank, or close other programs." in told.lines()


def test_going_on_with_other_pictures_or_captions_is_said(tmp_path: Path) -> None:
    data = pictures(tmp_path / "red")
    job = Job.read({"data": str(data), "steps": 4, "name": "taught"})
    run = Run.create(tmp_path, job, scan(job.data).digest)

    def told() -> list[str]:
        return [str(problem) for problem in check(job, run.folder).problems if "this run began with" in str(problem)]

    (run.checkpoints / "step-00002").mkdir(parents=True)
    assert told() == []
    (data / "0.txt").write_text("a red square, larger", encoding="utf-8")
    assert told() == ["The pictures or captions are not those that this run began with, and what it learned so far is of those. "
                      "Start a new run to teach the present ones from the beginning."]
    (run.checkpoints / "step-00002").rmdir()
    assert told() == []  # it has learned nothing yet
    (run.checkpoints / "step-00002").mkdir(parents=True)
    (run.folder / "events.jsonl").write_text('{"attempt": 0, "event": "queued"}\n', encoding="utf-8")
    assert told() == []  # nobody knows what it began with


def test_of_pictures_that_keep_their_size_those_too_large_for_the_memory_are_named(
        tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, size in (("small", (100, 70)), ("middle", (330, 200)), ("large", (700, 640))):
        Image.new("RGB", size, "green").save(tmp_path / f"{name}.png")
    job = Job.read({"data": str(tmp_path), "caption": "a wall", "resize": False, "steps": 2, "memory": "manual"})
    assert [problem.where for problem in check(job, tmp_path).problems] == ["small.png"]  # loses much to whole steps
    whole = foresight.memory_of
    seen: list[tuple[int, int]] = []

    def needs(work: Work) -> Any:
        seen.append(work.size)
        return whole(work)

    monkeypatch.setattr(foresight, "memory_of", needs)
    monkeypatch.setattr(devices, "free_bytes", lambda device: 60_000_000)
    found = [problem for problem in check(job, tmp_path).problems if "at its own size" in problem.english]
    assert [problem.where for problem in found] == ["large.png", "middle.png"] and found[0].warning
    assert seen[0] == (640, 640)
    assert found[1].english.startswith("middle.png is 330 x 200 pixels: a step at its own size needs about 0.")
    automatic = job.with_values(training={"memory": "auto"})
    monkeypatch.setattr(devices, "free_bytes", lambda device: 1_000_000)
    assert all(not problem.warning for problem in check(automatic, tmp_path).problems if "own size" in problem.english)


def test_a_time_is_told_only_where_one_like_it_was_measured(user_folder: Path) -> None:
    assert speeds.seconds(HERE) is None
    for line in (Speed("card", "lora", 1_000_000, 65536, 0.5), Speed("card", "lora", 1_000_000, 4 * 65536, 1.6),
                 Speed("card", "controlnet", 1_000_000, 65536, 9.0), Speed("other", "lora", 1_000_000, 65536, 7.0)):
        speeds.remember(line)
    with open(speeds.file(), "ab") as handle:
        handle.write(b"torn {\n")
    assert speeds.seconds(HERE) == 0.5
    assert speeds.seconds(Speed("card", "lora", 1_050_000, 8 * 65536)) == pytest.approx(3.2)  # twice the nearest's pixels
    assert speeds.seconds(Speed("card", "lora", 2_000_000, 65536)) is None  # another base
    assert speeds.seconds(Speed("third", "lora", 1_000_000, 65536)) is None  # another device
    assert speeds.seconds(Speed("card", "textual_inversion", 1_000_000, 65536)) is None  # another method's step is another step


def test_minutes_are_told_with_the_steps_that_fit_where_their_time_is_known(tmp_path: Path) -> None:
    assert foresight.Foresight("cpu", None, 2400.0).lines() == ["Steps: as many as fit into 40 min."]
    known = foresight.Foresight("cpu", None, 2400.0, 0.25).lines()
    assert known == ["In 40 min, about 9600 steps of 0.25 s each fit, as measured on this machine before."]


def test_the_file_of_speeds_does_not_grow_for_ever(user_folder: Path) -> None:
    for number in range(1, 1001):
        speeds.remember(Speed("card", "lora", 1_000_000, number, 0.5))
    assert speeds.file().stat().st_size < 100_000 and speeds.known()[-1].pixels == 1000


def test_a_finished_run_tells_the_next_ones_time(tmp_path: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aprendiz.pace.ENOUGH", 3)
    run = teach(tmp_path, pictures(tmp_path / "red"))
    told = foresight.foresee(run.job().with_values(training={"steps": 100}), 4)
    assert told.each is not None and told.seconds == 100 * told.each
    assert told.lines()[0].startswith("Time: about ")
