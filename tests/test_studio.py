"""The process that draws for pages: asked once for the same pictures, let go when a run begins, its death told in words."""

from __future__ import annotations

import argparse
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aprendiz.commands import drawing
from aprendiz.commands import studio as command
from aprendiz.errors import ModelError
from aprendiz.locks import devices_locked, is_wanted
from aprendiz.run import Run
from aprendiz.settings import Job
from aprendiz.views import studio
from aprendiz.views.studio import Side, Studio

# Draws a grey picture for each question, and ends at the word "die".
PROGRAM = '''
import json, sys
from PIL import Image
for line in sys.stdin:
    asked = json.loads(line)
    if "die" in asked["arguments"]:
        raise SystemExit(1)
    folder = asked["arguments"][-1]
    print("what a library prints", flush=True)
    print(json.dumps({"id": asked["id"], "done": 1, "total": 2}), flush=True)
    Image.new("L", (8, 8)).save(folder + "00001.png")
    print(json.dumps({"id": asked["id"], "files": [folder + "00001.png"]}), flush=True)
'''


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    monkeypatch.setattr(studio, "PROGRAM", program)
    room = Studio(lambda: tmp_path / "tries")
    yield room
    process = room._process
    room.end()
    closed(process)


def closed(process: Any) -> None:
    """Wait until a process and its pipes are gone."""
    until = time.monotonic() + 60
    while process is not None and not process.stdin.closed and time.monotonic() < until:
        time.sleep(0.02)


def drawn(side: Side) -> Side:
    until = time.monotonic() + 60
    while not side.told()["ready"] and time.monotonic() < until:
        time.sleep(0.02)
    return side


def test_the_same_pictures_are_drawn_once_even_after_a_restart_of_the_host(room: Studio, tmp_path: Path) -> None:
    file = tmp_path / "lora.safetensors"
    file.write_bytes(b"one")
    first = drawn(room.side(["--prompt=a"], [file]))
    with Image.open(room.picture(first.key, 0)) as picture:
        assert first.told()["count"] == 1 and picture.size == (8, 8)
    assert room.side(["--prompt=a"], [file]) is first
    later = Studio(room.place).side(["--prompt=a"], [file])  # of a host that was started anew: no process is needed
    assert later.key == first.key and later.told()["count"] == 1
    file.write_bytes(b"another")
    assert drawn(room.side(["--prompt=a"], [file])).key != first.key


def test_a_process_that_dies_is_told_in_words_and_the_next_question_starts_another(room: Studio,
                                                                                  answers: Callable[[str, object], None]) -> None:
    dead = drawn(room.side(["die"], []))
    told = dead.told()["problems"][0]["text"]
    assert "has ended, perhaps because memory ran out" in told and dead.told()["count"] == 0
    answers("page: the process that draws runs out of memory", told)
    assert drawn(room.side(["--prompt=b"], [])).told()["count"] == 1


def test_a_run_that_begins_sends_an_idle_process_away(room: Studio) -> None:
    drawn(room.side(["--prompt=c"], []))
    process = room._process
    assert process is not None
    room.rest()
    assert process.wait(60) != 0 and room._process is None
    closed(process)


def test_the_base_stays_open_from_question_to_question_and_what_fails_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    told: list[dict[str, Any]] = []

    def carry_out(order: Any, base: str, on_step: Callable[[int, int], None]) -> list[Path]:
        on_step(1, 2)
        if order == "fail":
            raise ModelError("{file} does not fit.", file="x")
        if order == "crash":
            raise ZeroDivisionError("ours")
        return [Path("p.png")]

    monkeypatch.setattr(drawing, "open_base", lambda asked: opened.append(asked.base) or asked.base)
    monkeypatch.setattr(drawing, "read_order", lambda asked: asked.prompt)
    monkeypatch.setattr(drawing, "carry_out", carry_out)

    def parse(words: list[str]) -> argparse.Namespace:
        bare = {**dict.fromkeys(command.OF_BASE), "device": "cpu", "precision": "auto"}
        return argparse.Namespace(**{**bare, "base": words[0], "prompt": words[1]})

    room = command.Studio(parse, told.append)
    for base, prompt in (("a", "x"), ("a", "fail"), ("a", "crash"), ("b", "x")):
        room.answer({"id": prompt, "arguments": [base, prompt]})
    assert opened == ["a", "b"]
    ends = [one for one in told if "done" not in one]
    assert ends[0] == {"id": "x", "files": ["p.png"]} and ends[1]["problems"][0]["text"] == "x does not fit."
    assert "ZeroDivisionError: ours" in ends[2]["problems"][0]["text"] and json.dumps(ends)


def test_a_picture_waits_for_the_run_on_its_device_and_is_drawn_while_that_is_paused(tmp_path: Path,
                                                                                     monkeypatch: pytest.MonkeyPatch,
                                                                                     user_folder: Path) -> None:
    run = Run.create(tmp_path, Job.read({"data": str(tmp_path), "name": "swimmer"}), "digest")
    states = ["running"]
    monkeypatch.setattr(Run, "state", property(lambda self: states[-1]))
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(drawing, "open_base", lambda asked: asked.base)
    monkeypatch.setattr(drawing, "read_order", lambda asked: None)
    monkeypatch.setattr(drawing, "carry_out", lambda order, base, on_step: [Path("p.png")])
    bare = {**dict.fromkeys(command.OF_BASE), "device": "cpu", "precision": "auto", "base": "a"}
    room = command.Studio(lambda words: argparse.Namespace(**bare), told.append)
    with devices_locked(["cpu"], lambda ahead: None, str(run.folder)):
        asking = threading.Thread(target=room.answer, args=({"id": "x", "arguments": []},))
        asking.start()
        until(lambda: told)
        assert told == [{"id": "x", "waits": "cpu", "by": "swimmer"}] and room.opened is None
        states.append("paused")
        asking.join(60)
        assert told[1:] == [{"id": "x", "files": ["p.png"]}] and room.opened is not None
        room.make_room()  # the run has the device: what is kept open makes room for it
        assert room.opened is None
    room.answer({"id": "y", "arguments": []})
    room.make_room()
    assert told[-1] == {"id": "y", "files": ["p.png"]} and room.opened is not None
    assert not is_wanted("cpu")


def test_the_page_is_told_what_a_picture_waits_for_and_whoever_gives_up_is_told_so(tmp_path: Path) -> None:
    side = Side("k", [], tmp_path)
    Studio._take(side, {"id": "k", "waits": "cuda:0", "by": "swimmer"})
    assert (side.told()["waits"], side.told()["by"], side.told()["ready"]) == ("cuda:0", "swimmer", False)
    Studio._take(side, {"id": "k", "done": 1, "total": 2})
    assert side.told()["waits"] == ""
    room = Studio(lambda: tmp_path)
    room._sides["k"] = side
    room.end()
    assert side.told()["ready"] and side.told()["problems"][0]["text"] == "The drawing was stopped."


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + 60
    while not true() and time.monotonic() < end:
        time.sleep(0.02)
