"""One card, two programs: the host's model leaves for a run that needs the room, and the run for pictures drawn meanwhile."""

from __future__ import annotations

from pathlib import Path

import pytest

from aprendiz.run import Run
from aprendiz.settings import Job
from aprendiz.views import card
from aprendiz.views.card import DRIVER, SPARE, Card


class Model:
    """A host's model of so many bytes on a card that has so many free without it."""

    def __init__(self, free: int | None, size: int, wish: str = "auto", place: str = "cuda") -> None:
        self.room, self.size, self.open, self.at_it = free, size, True, False
        self.lacking = False
        self.wanted, self.where = wish, place
        self.moves: list[str] = []

    def place(self) -> str:
        return self.where

    def wish(self) -> str:
        return self.wanted

    def there(self) -> bool:
        return self.open

    def free(self) -> int | None:
        return None if self.room is None else self.room - self.size * self.open

    def leave(self) -> None:
        self.open = False
        self.moves.append("left")

    def come_back(self) -> None:
        self.open = True
        self.moves.append("back")

    def drawing(self) -> bool:
        return self.at_it

    def lacks(self) -> bool:
        return self.lacking


@pytest.fixture
def run(tmp_path: Path) -> Run:
    base = tmp_path / "base.safetensors"
    with base.open("wb") as file:
        file.truncate(3 << 30)  # as large as a model's; takes no room on the disk
    made = Run.create(tmp_path, Job.read({"data": str(tmp_path), "base": str(base), "name": "fish"}), "digest")
    made.attempt = 1
    return made


def test_the_hosts_model_stays_where_the_card_holds_both(run: Run) -> None:
    model = Model((6 << 30) + SPARE + (4 << 30), 4 << 30)
    Card(model, list).before_run(run)
    assert model.moves == []


def test_what_was_counted_of_a_run_goes_before_the_size_of_its_base(run: Run) -> None:
    model = Model((4 << 30) + DRIVER + (2 << 30), 4 << 30)
    Card(model, list).before_run(run, wanted=2 << 30)
    assert model.moves == []
    Card(model, list).before_run(run, wanted=(2 << 30) + 1)
    assert model.moves == ["left"]


def test_where_nobody_knows_what_is_free_the_model_stays(run: Run) -> None:
    model = Model(None, 4 << 30)
    Card(model, list).before_run(run)
    assert model.moves == []


def test_a_person_may_have_it_leave_always_or_never_whatever_is_free(run: Run) -> None:
    for wish, room, moves in (("always", None, ["left"]), ("always", 99 << 30, ["left"]), ("never", 0, [])):
        model = Model(room, 0, wish)
        Card(model, list).before_run(run)
        assert model.moves == moves
    model = Model(None, 0, "always")
    model.open = False  # not even opened yet
    Card(model, list).before_run(run)
    assert model.moves == []


def test_a_picture_that_is_being_drawn_is_waited_for_and_keeps_its_model(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "PATIENCE", 0.2)
    model = Model(0, 0)
    model.at_it = True
    Card(model, list).before_run(run)
    assert model.moves == []
    model.at_it = False
    Card(model, list).before_run(run)
    assert model.moves == ["left"]


def test_the_computers_memory_counts_where_the_host_draws_on_the_processor(run: Run, tmp_path: Path) -> None:
    on_card = Run.create(tmp_path, Job.read({"data": str(tmp_path), "device": "cuda", "name": "on-card"}), "digest")
    for one, moves in ((run, ["left"]), (on_card, [])):
        model = Model(0, 0, place="cpu")
        Card(model, list).before_run(one)
        assert model.moves == moves


def test_it_leaves_for_a_run_that_needs_the_room_and_is_back_when_the_host_draws(run: Run) -> None:
    model = Model(10 << 30, 4 << 30)
    both = Card(model, list)
    both.before_run(run)
    both.before_run(run)
    assert model.moves == ["left"]
    both.before_drawing()
    both.before_drawing()
    assert model.moves == ["left", "back"]


def test_a_run_pauses_while_the_host_draws_and_goes_on_when_it_is_quiet(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "QUIET", 3600.0)  # the clock is not waited for; what it does is called below
    model, states = Model(10 << 30, 4 << 30), ["running"]
    monkeypatch.setattr(Run, "state", property(lambda self: states[-1]))
    commands: list[str] = []

    def tell(self: Run, command: str, by: str | None = None) -> None:
        commands.append(command)
        states.append({"pause": "paused", "resume": "running"}[command])

    monkeypatch.setattr(Run, "tell", tell)
    both = Card(model, lambda: [run])
    both.before_run(run)
    both.before_drawing()
    assert (commands, model.moves) == (["pause"], ["left", "back"])
    model.at_it = True
    both.go_on()  # still at the picture: the pause would run out
    assert (commands, states[-1]) == (["pause", "pause"], "paused")
    model.at_it = False
    both.go_on()
    assert (commands[2:], model.moves) == (["resume"], ["left", "back", "left"])
    both.before_drawing()
    assert commands[2:] == ["resume", "pause"]
    states.append("stopped")  # by the person, meanwhile
    both.go_on()
    assert commands[2:] == ["resume", "pause"]
    assert model.open


def test_a_run_pauses_for_a_model_that_was_not_open_when_it_began_and_finds_no_room_now(
        run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "QUIET", 3600.0)
    monkeypatch.setattr(card, "_wait_while", lambda busy: None)
    model = Model(10 << 30, 4 << 30, "never")
    model.open = False
    both = Card(model, lambda: [Run.open(run.folder)])
    with run.locked():
        run.event("step", step=1)
        both.before_drawing()
        assert (run.commands(), model.moves) == ([], [])  # there is room
        model.lacking = True
        both.before_drawing()
        assert (run.commands(), model.moves) == (["pause"], ["back"])
        run.event("paused", step=1, by="host")
        both.go_on()
        assert (run.commands(), model.moves) == (["resume"], ["back"])  # a person said that it never leaves


def test_a_run_told_to_pause_before_its_first_step_is_not_waited_for_and_goes_on_later(
        run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "QUIET", 3600.0)
    waited: list[bool] = []
    monkeypatch.setattr(card, "_wait_while", lambda busy: waited.append(busy()))
    model = Model(10 << 30, 4 << 30)
    both = Card(model, lambda: [Run.open(run.folder)])
    with run.locked():
        run.event("caching", what="pictures", done=1, total=9)
        both.before_run(run)
        both.before_drawing()
        assert (run.commands(), waited[-1]) == (["pause"], False)
        both.go_on()  # the host is quiet, and the run still caches
        assert model.moves == ["left", "back"]
        run.event("step", step=1)
        run.event("paused", step=1)
        both.go_on()
        assert (run.commands(), model.moves) == (["resume"], ["left", "back", "left"])
        run.event("resumed", step=1)
        both.before_drawing()
        assert (run.commands(), waited[-1]) == (["pause"], True)  # it is at its steps now
        run.event("paused", step=2)
        run.event("resumed", step=2)  # by the person
        both.go_on()
        run.event("paused", step=3)  # by the person, too
        both.go_on()
        assert run.commands() == []


def test_a_run_on_another_device_is_none_of_the_cards_business(run: Run, tmp_path: Path) -> None:
    other = Run.create(tmp_path, Job.read({"data": str(tmp_path), "device": "cuda:1", "name": "other"}), "digest")
    model = Model(10, 5)
    Card(model, list).before_run(other)
    assert model.moves == []
