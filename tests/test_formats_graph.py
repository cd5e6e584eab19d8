"""The graph that a file carries: it comes back as it was, and nothing private travels in it."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from aprendiz.formats import graph, metadata, png, share
from aprendiz.settings import Job

USER, MACHINE = "mariposa_garcia", "maquina-de-mariposa"
JOB = Job.read({"data": "pictures"})


@pytest.fixture
def private_person(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(getpass, "getuser", lambda: USER)
    monkeypatch.setattr(socket, "gethostname", lambda: MACHINE)
    monkeypatch.setattr(Path, "home", lambda: Path("/home") / USER)
    metadata.private_words.cache_clear()
    yield
    metadata.private_words.cache_clear()


def sample(folder: str = "fish") -> dict[str, Any]:
    """A graph as ComfyUI hands it over: as the page saves it, and as it was queued."""
    values = {"folder": folder, "trigger": "zwx", "rank": 4, "scale": 1.5, "on": True, "nothing": None}
    node = {"id": 2, "type": "AprendizDatasetFolder", "pos": [10, 20], "widgets_values": [folder, "zwx"],
            "properties": {"aprendiz_values": values, "aprendiz_run": "0123456789abcdef"}}
    return {"workflow": {"nodes": [node], "links": [[1, 2, 0, 3, 0, "X"]], "extra": {"ds": {"scale": 0.5}}},
            "prompt": {"2": {"class_type": "AprendizDatasetFolder", "inputs": {**values, "base": ["1", 0]}}}}


def test_a_graph_comes_back_as_it_was_but_for_what_one_machine_knows(tmp_path: Path) -> None:
    graph.keep(tmp_path, sample())
    told = graph.texts(tmp_path, JOB)
    expected = sample()
    del expected["workflow"]["nodes"][0]["properties"]["aprendiz_run"]
    assert {name: json.loads(text) for name, text in told.items()} == expected


@pytest.mark.parametrize(("path", "left"), [
    (f"/home/{USER}/My secret folder/fish", "fish"), (rf"C:\Users\{USER}\secret things\fish", "fish"),
    (rf"\\{MACHINE}\secret\fish", "fish"), ("~/secret/fish", "fish"), (f"D:/{USER}/secret/fish.safetensors", "fish.safetensors"),
    (f"one\n/home/{USER}/secret/two", "one\ntwo"), (f"see /home/{USER}/secret/two, please", "see two, please"),
    (f"/home/{USER}", "private"), (f"a portrait of {USER.upper()} at {MACHINE}", "a portrait of private at private"),
])
def test_paths_and_names_of_the_person_are_put_out_of_it(path: str, left: str, private_person: None, tmp_path: Path) -> None:
    graph.keep(tmp_path, sample(path))
    told = graph.texts(tmp_path, JOB)
    for text in told.values():
        for word in (USER, MACHINE, "secret", "home", "Users"):
            assert word.lower() not in text.lower()
    assert json.loads(told["workflow"])["nodes"][0]["widgets_values"] == [left, "zwx"]
    assert json.loads(told["prompt"])["2"]["inputs"]["folder"] == left


@pytest.mark.parametrize("text", ["a red/blue fish, 1/2 of it", "https://example.org/a/b/c.html", "(fish:1.2), <lora:a:1>",
                                  "{a|b|c}", r"\(smiling\)", "and/or", "sd/v1.safetensors", r"sd\v1.safetensors", "a: b"])
def test_prompts_and_names_of_lists_stay_as_they_are(text: str) -> None:
    assert graph.text(text) == text


@pytest.mark.parametrize("output", [{"metadata": "public"}, {"metadata": "none"}, {"captions_in_metadata": False}])
def test_where_not_everything_is_to_be_told_the_graph_stays_at_home(output: dict[str, Any], tmp_path: Path) -> None:
    graph.keep(tmp_path, sample())
    assert graph.texts(tmp_path, Job.read({"data": "pictures", "output": output})) == {}


@pytest.mark.parametrize("content", [None, "", "{", "[]", '{"workflow": 5}'])
def test_a_run_without_a_graph_writes_files_all_the_same(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / graph.FILE).write_text(content, encoding="utf-8")
    assert graph.texts(tmp_path, JOB) == {}


def test_a_graph_that_is_too_large_for_a_header_is_left_out(tmp_path: Path) -> None:
    graph.keep(tmp_path, sample("x" * graph.LARGEST))
    assert graph.texts(tmp_path, JOB) == {}


def test_a_picture_carries_it_as_plain_text_chunks(tmp_path: Path) -> None:
    graph.keep(tmp_path, sample("peixe à noite"))
    file = png.save_over(Image.new("RGB", (8, 8)), tmp_path / "sample.png", png.Parameters("a fish"),
                         graph.texts(tmp_path, JOB))
    assert b"tEXtworkflow\0{" in file.read_bytes() and b"tEXtprompt\0{" in file.read_bytes()
    with Image.open(file) as opened:
        assert json.loads(opened.info["prompt"])["2"]["inputs"]["folder"] == "peixe à noite"
    read = png.read(file)
    assert read is not None and read.prompt == "a fish"


def test_what_is_published_carries_no_graph() -> None:
    told = {"workflow": "{}", "prompt": "{}", "ss_v2": "False"}
    assert all(not {"workflow", "prompt"} & set(share.public_metadata(told, level)) for level in share.LEVELS)
