"""Minutes as a setting: the steps that fit are decided once, and the run is then the run of that many steps, bit for bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from lessons import losses, pictures, teach
from safetensors.torch import load_file

from aprendiz import pace
from aprendiz import train as loop
from aprendiz.errors import ProblemsError
from aprendiz.run import Run
from aprendiz.settings import Job

SETTINGS: dict[str, Any] = {"schedule": "cosine", "warmup_steps": 2, "ema_decay": 0.9, "rank_dropout": 0.1,
                            "caption_dropout": 0.2, "sample_every_steps": 4, "precision": "fp32"}
MINUTES: dict[str, Any] = {"minutes": 0.2, "steps": None}


@pytest.fixture
def a_second_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that goes on by a second whenever it is looked at, so that no machine's speed counts."""
    ticks = itertools.count()
    monkeypatch.setattr(loop, "clock", lambda: float(next(ticks)))
    monkeypatch.setattr(pace, "_since_ready", lambda run: 2.0)


def test_a_run_of_minutes_is_the_run_of_the_steps_that_fit_however_often_it_is_stopped(
        tmp_path: Path, a_second_a_look: None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = pictures(tmp_path / "red")
    # 12 s less 2 s for opening and 1 s for the last samples; a step takes 1 s and a quarter of the 1 s that samples take.
    timed = teach(tmp_path / "timed", data, **MINUTES, **SETTINGS)
    straight = teach(tmp_path / "straight", data, steps=7, **SETTINGS)
    assert same(timed, straight) and losses(timed) == losses(straight)
    told = [event["text"] for event in timed.events() if event["event"] == "message"]
    assert "A step takes 1 s here, so 7 steps fit into 0.2 minutes." in told
    assert json.loads((timed.folder / "pace.json").read_text())["steps"] == 7
    teach(tmp_path / "stopped", data, stop_at=3, **MINUTES, **SETTINGS)
    monkeypatch.setattr(pace, "decide", lambda *_: pytest.fail("the number of steps was decided a second time"))
    assert same(teach(tmp_path / "stopped", data, **MINUTES, **SETTINGS), straight)


def same(a: Run, b: Run) -> bool:
    x, y = load_file(a.file), load_file(b.file)
    return set(x) == set(y) and all(bool((x[name] == y[name]).all()) for name in x)


def test_at_least_one_step_is_taken(tmp_path: Path, a_second_a_look: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "_since_ready", lambda run: 1e6)
    assert len(losses(teach(tmp_path, pictures(tmp_path / "red"), **MINUTES))) == 1


def test_minutes_beside_steps_or_epochs_are_refused(answers: Any) -> None:
    for other in ({"steps": 5}, {"epochs": 2}):
        with pytest.raises(ProblemsError) as raised:
            Job.read({"data": "p", "minutes": 40, **other})
        assert [problem.where for problem in raised.value.problems] == ["training.minutes"]
    answers("minutes 40 beside epochs 2", raised.value)
