"""What the page asks its host for: only names, only within the folders it may open, bounded, and nobody but the page itself."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from safetensors.numpy import save_file
from starlette.applications import Starlette
from starlette.testclient import TestClient

from aprendiz.data.bench import Change
from aprendiz.errors import AprendizError, ProblemsError, RunError
from aprendiz.run import Run
from aprendiz.settings import SECTIONS, Job
from aprendiz.views import controls, form, results, studio
from aprendiz.views.desk import UNPLACED, Desk, at_once
from aprendiz.views.presets import cards, subjects
from aprendiz.views.questions import CHECKS
from aprendiz.views.routes import EVENTS_AT_ONCE, Answer, Request, Routes, mount

Answers = Callable[[str, object], None]
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures: one with a caption, one without, one that a table captions."""
    folder = tmp_path / "allowed" / "pictures"
    folder.mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "c.png")):
        Image.new("RGB", (300 + 20 * i, 200), (80 * i, 40, 90)).save(folder / name)
    (folder / "a.txt").write_text("a grey wall", encoding="utf-8")
    (folder / "metadata.jsonl").write_text('{"file_name": "c.png", "text": "from the table"}\n', encoding="utf-8")
    return folder


@pytest.fixture
def desk(tmp_path: Path, data: Path) -> Desk:
    return Desk(lambda: tmp_path / "out", at_once([tmp_path / "allowed"]))


@pytest.fixture
def routes(desk: Desk, user_folder: Path) -> Routes:
    return Routes(desk)


def get(routes: Routes, path: str, **query: str) -> Answer:
    return routes.handle(Request("GET", path, query))


def post(routes: Routes, path: str, value: Any) -> Answer:
    return routes.handle(Request("POST", path, body=json.dumps(value).encode()))


def told(answer: Answer, status: int = 200) -> dict[str, Any]:
    assert answer.status == status, answer.body
    value: dict[str, Any] = json.loads(answer.body)
    return value


def filled(values: dict[str, Any]) -> dict[str, Any]:
    """The form that has these values."""
    return form.of_job({"method": {"name": "lora"}, **values})


def made(tmp_path: Path, data: Path, **settings: Any) -> Run:
    return Run.create(tmp_path / "out", Job.read({"data": str(data), "steps": 3, "name": "one", **settings}), "digest")


# Pictures and captions


def test_the_pictures_of_a_folder_come_with_their_captions_and_those_in_trouble_first(routes: Routes, data: Path) -> None:
    found = told(post(routes, "pictures", {"form": filled({"data": {"path": str(data)}})}))
    assert (found["total"], found["captioned"], found["troubled"]) == (3, 2, 1)
    assert [one["name"] for one in found["pictures"]] == ["b.png", "a.png", "c.png"]
    assert "has no caption" in found["pictures"][0]["problems"][0]["text"]
    shown = [(one["caption"], one["editable"]) for one in found["pictures"]]
    assert shown == [(None, True), ("a grey wall", True), (None, False)]


def test_a_trigger_word_is_shown_in_what_is_trained_and_never_written_into_the_caption(routes: Routes, data: Path) -> None:
    found = told(post(routes, "pictures", {"form": filled({"data": {"path": str(data), "trigger": "zwx"}})}))
    one = next(one for one in found["pictures"] if one["name"] == "a.png")
    assert one["taught"] == ["zwx, a grey wall"] and one["caption"] == "a grey wall"


def test_a_caption_is_written_into_the_file_beside_its_picture(routes: Routes, data: Path) -> None:
    answer = told(post(routes, "captions", {"folder": str(data), "captions": {"a.png": "a  blue\nwall", "b.png": SCRIPT}}))
    assert answer == {"captions": {"a.png": "a blue wall", "b.png": SCRIPT}, "problems": [], "now": {}}
    assert (data / "a.txt").read_text(encoding="utf-8") == "a blue wall\n"
    assert (data / "b.txt").read_text(encoding="utf-8") == SCRIPT + "\n"


def test_a_caption_is_not_written_over_a_newer_one(routes: Routes, data: Path, answers: Answers) -> None:
    def write(text: str, *known: str) -> dict[str, Any]:
        return told(post(routes, "captions", {"folder": str(data), "captions": {"a.png": text}, "known": {"a.png": known}}))

    assert write("a red wall", "a grey wall")["captions"] == {"a.png": "a red wall"}
    assert write("a red wall", "a grey wall")["captions"] == {"a.png": "a red wall"}  # asked again: its answer had been lost
    assert write("a red door", "a grey wall", "a red  wall")["captions"] == {"a.png": "a red door"}
    late = write("a re", "a grey wall")
    assert late["captions"] == {} and late["now"] == {"a.png": "a red door"}
    answers("page: a caption that was changed elsewhere meanwhile", late["problems"][0]["text"])
    assert (data / "a.txt").read_text(encoding="utf-8") == "a red door\n"
    assert write("a blue door", *late["now"].values())["captions"] == {"a.png": "a blue door"}
    (data / "a.txt").unlink()
    assert write("a new one", "a blue door")["now"] == {"a.png": ""}
    (data / "a.txt").write_bytes("a wall".encode("utf-16"))  # told of among the folder's problems, and shown as empty
    assert write("a new one", "")["captions"] == {"a.png": "a new one"}


def test_captions_written_meanwhile_leave_no_picture_out_of_those_asked_for_later(routes: Routes, tmp_path: Path) -> None:
    folder = tmp_path / "allowed" / "many"
    folder.mkdir()
    for i in range(6):
        Image.new("RGB", (128, 128)).save(folder / f"{i}.png")
        if i != 4:
            (folder / f"{i}.txt").write_text("a wall", encoding="utf-8")
    values = {"data": {"path": str(folder)}}
    first = told(post(routes, "pictures", {"form": filled(values), "count": 3}))["pictures"]
    assert [one["name"] for one in first] == ["4.png", "0.png", "1.png"]
    told(post(routes, "captions", {"folder": str(folder), "captions": {"4.png": "another wall"}}))
    rest = told(post(routes, "pictures", {"form": filled(values), "from": 3, "count": 3}))["pictures"]
    assert [one["name"] for one in rest] == ["2.png", "3.png", "5.png"]


def test_a_caption_that_cannot_be_written_is_told_of_beside_its_picture(routes: Routes, data: Path, answers: Answers) -> None:
    answer = told(post(routes, "captions", {"folder": str(data), "captions": {"c.png": "x", "a.png": "y" * 20_001}}))
    assert answer["captions"] == {}
    assert [problem["where"] for problem in answer["problems"]] == ["c.png", "a.png"]
    for problem in answer["problems"]:
        answers(f"page: the caption of {problem['where']}", problem["text"])
    assert (data / "a.txt").read_text(encoding="utf-8") == "a grey wall"


def test_a_thumbnail_is_small_upright_and_made_once(routes: Routes, data: Path, user_folder: Path) -> None:
    picture = Image.new("RGB", (640, 320), "white")
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(data / "turned.jpg", exif=exif)
    first = get(routes, "thumbnail", folder=str(data), name="turned.jpg")
    assert first.kind == "image/jpeg" and len(first.body) < 20_000
    kept = next((user_folder / "thumbnails").rglob("*.jpg"))
    with Image.open(kept) as small:
        assert small.size == (128, 256)
    kept.write_bytes(b"kept")
    assert get(routes, "thumbnail", folder=str(data), name="turned.jpg").body == b"kept"


@pytest.mark.parametrize("name", ["../secret.png", "..\\secret.png", "/etc/passwd", "C:\\x.png", "a.txt", ".hidden.png",
                                  "a.png/../../secret.png", "", "nul\0.png", "metadata.jsonl", "link.png"])
def test_no_picture_outside_the_folder_is_opened_or_captioned(routes: Routes, data: Path, name: str) -> None:
    Image.new("RGB", (8, 8)).save(data.parent / "secret.png")
    (data / "link.png").symlink_to(data.parent.parent / "outside.png")
    Image.new("RGB", (8, 8)).save(data.parent.parent / "outside.png")
    for what in ("thumbnail", "picture"):
        answer = get(routes, what, folder=str(data), name=name)
        assert answer.status == 400 and answer.file is None
    before = sorted(data.parent.parent.rglob("*.txt"))
    assert told(post(routes, "captions", {"folder": str(data), "captions": {name: "x"}}))["captions"] == {}
    assert sorted(data.parent.parent.rglob("*.txt")) == before


@pytest.mark.parametrize("way", ["plain", "dots", "link"])
def test_no_folder_outside_those_configured_is_opened(routes: Routes, desk: Desk, data: Path, tmp_path: Path, way: str,
                                                      answers: Answers) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    Image.new("RGB", (8, 8)).save(outside / "a.png")
    (data / "door").symlink_to(outside, target_is_directory=True)
    folder = {"plain": outside, "dots": data / ".." / ".." / "outside", "link": data / "door"}[way]
    for answer in (post(routes, "pictures", {"form": filled({"data": {"path": str(folder)}})}),
                   get(routes, "thumbnail", folder=str(folder), name="a.png"),
                   post(routes, "captions", {"folder": str(folder), "captions": {"a.png": "x"}})):
        sentence = told(answer, 400)["problems"][0]["text"]
        assert "is outside the folders" in sentence
    answers("page: a folder outside those it may open", sentence.replace(str(tmp_path), "..."))
    with pytest.raises(ProblemsError) as raised:
        desk.begin({"data": {"path": str(folder)}, "base": {"path": "micro", "vae": str(outside / "vae.pt")}})
    assert sorted(problem.where for problem in raised.value.problems) == ["base.vae", "data.path"]
    assert not (outside / "a.txt").exists() and not (tmp_path / "out").exists()


def test_a_change_of_all_captions_is_one_request_and_can_be_taken_back(routes: Routes, data: Path, answers: Answers) -> None:
    (data / "a.txt").write_text("a grey wall, old, wide", encoding="utf-8")
    values = {"data": {"path": str(data)}}

    def edit(kind: str, find: str, by: str = "") -> Any:
        return told(post(routes, "edit", {"form": filled(values), "kind": kind, "find": find, "by": by}))

    def captions() -> list[str]:
        return [file.read_text(encoding="utf-8").strip() for file in (data / "a.txt", data / "b.txt") if file.exists()]

    front = edit("front", "zwx")
    assert front["count"] == 2 and captions() == ["zwx, a grey wall, old, wide", "zwx"]  # the table's own stays in the table
    assert edit("front", "zwx")["count"] == 0
    assert told(post(routes, "pictures", {"form": filled(values)}))["tags"] == [["zwx", 2]]  # what only one has is no tag
    assert edit("rename", "old", "new")["count"] == 1 and captions()[0] == "zwx, a grey wall, new, wide"
    assert edit("remove", "new")["count"] == 1 and captions()[0] == "zwx, a grey wall, wide"
    assert edit("replace", "a grey", SCRIPT)["count"] == 1 and captions()[0] == f"zwx, {SCRIPT} wall, wide"
    assert edit("end", "photo")["count"] == 2 and captions()[1] == "zwx, photo"
    assert told(post(routes, "unedit", {"form": filled(values), "id": front["id"]}))["count"] == 2
    assert captions() == ["a grey wall, old, wide", ""]
    assert post(routes, "unedit", {"form": filled(values), "id": front["id"]}).status == 400
    nothing = told(post(routes, "edit", {"form": filled(values), "kind": "replace", "find": " "}), 400)["problems"][0]["text"]
    answers("page: replace nothing in all captions", nothing)


def test_a_change_of_all_captions_is_taken_back_where_it_was_made(routes: Routes, data: Path, tmp_path: Path) -> None:
    other = tmp_path / "allowed" / "other"  # which the page has opened meanwhile, with pictures of the same names
    shutil.copytree(data, other)
    (other / "a.txt").write_text("another wall", encoding="utf-8")
    done = told(post(routes, "edit", {"form": filled({"data": {"path": str(data)}}), "kind": "front", "find": "zwx"}))
    assert done["count"] == 2
    back = told(post(routes, "unedit", {"form": filled({"data": {"path": str(other)}}), "id": done["id"]}))
    assert back["count"] == 2 and (data / "a.txt").read_text(encoding="utf-8").strip() == "a grey wall"
    assert (other / "a.txt").read_text(encoding="utf-8") == "another wall" and not (other / "b.txt").exists()


@pytest.mark.parametrize(("caption", "lacks"), [("a woman, old", True), ("Man on a wall", False), ("a man's hat", False),
                                                ("", True)])
def test_words_are_put_in_where_they_lack_as_words_of_their_own(caption: str, lacks: bool) -> None:
    assert Change("front", "man").of(caption) == (", ".join(filter(None, ["man", caption])) if lacks else caption)
    assert Change("end", "man").of(caption) == (", ".join(filter(None, [caption, "man"])) if lacks else caption)


# Runs


def test_runs_are_listed_and_read_on_from_where_they_were_read_to(routes: Routes, tmp_path: Path, data: Path) -> None:
    run = made(tmp_path, data)
    run.attempt = 1
    run.event("step", step=1, steps=3, loss=0.5)
    one, = told(get(routes, "runs"))["runs"]
    assert {**one, "time": None} == {"name": "one", "folder": str(run.folder), "state": "dead", "busy": False,
                                     "step": 1, "steps": 3, "loss": 0.5, "picture": None, "time": None, "file": None,
                                     "method": "lora", "base": "micro", "trigger": None, "files": [], "prompts": [],
                                     "log": None}
    first = told(get(routes, "runs/one/events"))
    assert [event["event"] for event in first["events"]] == ["queued", "step"] and first["state"] == "dead" and first["problems"]
    run.event("finished", step=3, file="one.safetensors")
    more = told(get(routes, "runs/one/events", **{"from": str(first["next"])}))
    assert [event["event"] for event in more["events"]] == ["finished"] and more["state"] == "finished"
    listed = told(get(routes, "runs"))["runs"][0]
    assert listed["state"] == "finished" and listed["files"] == [{"step": 3, "file": "one.safetensors"}]


def test_the_losses_of_a_run_are_a_table(routes: Routes, tmp_path: Path, data: Path) -> None:
    run = made(tmp_path, data)
    run.attempt = 1
    run.event("step", step=1, epoch=0.5, loss=0.25, learning_rate=1e-4)
    run.event("step", step=2, epoch=1.0, loss=float("nan"), learning_rate=1e-4)
    run.event("validation", step=2, loss=0.5)
    answer = get(routes, "runs/one/loss.csv")
    assert answer.body.decode().splitlines() == ["step,epoch,loss,learning_rate,validation_loss", "1,0.5,0.25,0.0001,",
                                                 "2,1.0,,0.0001,0.5"]
    assert answer.kind.startswith("text/csv") and "one-loss.csv" in answer.headers["Content-Disposition"]


def test_the_log_of_a_run_is_named_where_there_is_one_and_stays_text(routes: Routes, tmp_path: Path, data: Path) -> None:
    run = made(tmp_path, data)
    assert told(get(routes, "runs"))["runs"][0]["log"] is None
    run.log.write_text(f"attempt begun\n{SCRIPT} señor\n", encoding="utf-8")
    run.attempt = 1
    run.event("queued")
    listed = told(get(routes, "runs"))["runs"][0]
    assert listed["step"] == 0 and listed["log"] == "log.txt"  # also of one that ended before its first step
    answer = client(routes).get(f"/aprendiz/runs/one/files/{listed['log']}")
    assert answer.text == f"attempt begun\n{SCRIPT} señor\n" and answer.headers["content-type"] == "text/plain; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff" and "sandbox" in answer.headers["content-security-policy"]
    assert "content-disposition" not in answer.headers  # shown, not kept


def test_an_answer_holds_a_megabyte_of_events_at_most_and_loses_none(routes: Routes, tmp_path: Path, data: Path) -> None:
    run = made(tmp_path, data)
    line = json.dumps({"v": 1, "attempt": 1, "time": 1.0, "event": "message", "text": "x" * 1000}) + "\n"
    with open(run.folder / "events.jsonl", "a", encoding="utf-8") as events:
        events.write(line * 3000)
    count, offset = 0, 0
    while True:
        answer = get(routes, "runs/one/events", **{"from": str(offset)})
        assert len(answer.body) < EVENTS_AT_ONCE * 1.2
        some = told(answer)
        count += len(some["events"])
        if some["next"] == offset:
            break
        offset = some["next"]
    assert count == 3001


@pytest.mark.parametrize("name", ["..", ".", "one/..", "%2e%2e", "../../outside", "one\0", ".cache", "nothing", "C:", ""])
def test_a_run_is_found_by_its_name_alone(routes: Routes, tmp_path: Path, data: Path, name: str) -> None:
    made(tmp_path, data)
    (tmp_path / "out" / "job.json").write_text("{}", encoding="utf-8")
    for what in ("events", "job", "files/job.json"):
        assert get(routes, f"runs/{name}/{what}").status in (400, 404)
    assert post(routes, f"runs/{name}/delete", {}).status in (400, 404)
    assert (tmp_path / "out" / "aprendiz" / "one" / "job.json").is_file()


@pytest.mark.parametrize("file", ["../two/job.json", "samples/../../two/job.json", "/etc/passwd", "samples\\..\\x.png", "lock",
                                  ".hidden.png", "page.html", "link.png", "samples", ""])
def test_of_a_run_only_files_of_known_kinds_inside_its_folder_are_shown(routes: Routes, tmp_path: Path, data: Path,
                                                                        file: str) -> None:
    run, other = made(tmp_path, data), made(tmp_path, data, name="two", steps=4)
    assert other.name == "two"
    run.samples.mkdir()
    (run.folder / "lock").write_text("", encoding="utf-8")
    (run.folder / "page.html").write_text(SCRIPT, encoding="utf-8")
    Image.new("RGB", (8, 8)).save(tmp_path / "outside.png")
    (run.folder / "link.png").symlink_to(tmp_path / "outside.png")
    answer = get(routes, f"runs/one/files/{file}")
    assert answer.status in (400, 404) and answer.file is None
    shown = get(routes, "runs/one/files/job.json")
    assert shown.file == run.folder / "job.json" and "sandbox" in shown.headers["Content-Security-Policy"]


def test_a_run_that_nobody_trains_is_told_nothing_and_can_be_deleted(routes: Routes, tmp_path: Path, data: Path,
                                                                     answers: Answers) -> None:
    run = made(tmp_path, data)
    run.attempt = 1
    run.event("stopped", step=0)
    refused = told(post(routes, "runs/one/tell", {"command": "pause"}), 400)["problems"][0]["text"]
    assert "is not being trained" in refused
    answers("page: Pause for a run that has ended", refused)
    assert told(post(routes, "runs/one/delete", {})) == {"ok": True}
    assert not run.folder.exists() and told(get(routes, "runs"))["runs"] == []
    assert told(get(routes, "runs/one/events"), 400)["problems"][0]["text"] == "There is no run one here."


def test_a_run_is_deleted_where_somebody_looks_into_it(routes: Routes, tmp_path: Path, data: Path, held: None) -> None:
    run = made(tmp_path, data)
    assert told(post(routes, "runs/one/delete", {})) == {"ok": True}
    assert not run.folder.exists()


def test_a_run_that_is_trained_is_not_deleted_and_hears_what_it_is_told(routes: Routes, tmp_path: Path, data: Path,
                                                                        answers: Answers) -> None:
    run = made(tmp_path, data)
    with run.locked():
        refused = told(post(routes, "runs/one/delete", {}), 400)["problems"][0]["text"]
        answers("page: Delete for a run that is being trained", refused)
        assert told(post(routes, "runs/one/tell", {"command": "save"})) == {"ok": True}
        unknown = told(post(routes, "runs/one/tell", {"command": "explode"}), 400)["problems"][0]["text"]
        assert unknown.startswith("There is no command 'explode'")
    assert run.folder.is_dir() and run.commands() == ["save"]


def test_two_pages_that_press_start_at_once_make_one_run_and_one_worker(desk: Desk, tmp_path: Path, data: Path, user_folder: Path,
                                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    # A worker that only takes its time: what counts here is how many are started.
    slow = tmp_path / "slow.py"
    slow.write_text("import sys, time\ntime.sleep(60)\n", encoding="utf-8")
    monkeypatch.setattr("aprendiz.worker.client.PROGRAM", slow)
    from concurrent.futures import ThreadPoolExecutor
    values = {"data": {"path": str(data), "caption": "a wall"}, "training": {"steps": 2}}
    with ThreadPoolExecutor(2) as pool:
        runs = list(pool.map(lambda _: desk.begin(values), range(2)))
    assert runs[0].folder == runs[1].folder and len(desk._workers) == 1
    worker = desk._workers[runs[0].folder]
    assert desk.state(runs[0]) == "queued"
    worker.process.kill()
    worker.wait(30)
    assert (runs[0].folder / "log.txt").read_text(encoding="utf-8").count("attempt begun") == 1


def test_a_start_that_fails_leaves_no_run_and_takes_none_away(routes: Routes, tmp_path: Path, data: Path, answers: Answers,
                                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APRENDIZ_PYTHON", str(tmp_path / "none" / "python"))
    values = {"data": {"path": str(data), "caption": "a wall"}, "training": {"steps": 2}, "output": {"name": "one"}}
    with pytest.raises(RunError) as raised:
        routes.desk.begin(values)
    answers("page: Start with a Python that is not there", str(raised.value).replace(str(tmp_path), "..."))
    assert not (tmp_path / "out").exists()
    from aprendiz.data import folder
    job = routes.desk.job(values)
    run = Run.create(tmp_path / "out", job, folder.scan(job.data).digest)  # left there by an earlier start
    with pytest.raises(RunError):
        routes.desk.begin(values)
    listed = told(get(routes, "runs"))["runs"][0]
    assert (listed["name"], listed["state"], listed["busy"]) == ("one", "stopped", False)
    assert "is not being trained" in told(post(routes, "runs/one/tell", {"command": "stop"}), 400)["problems"][0]["text"]
    assert told(post(routes, "runs/one/delete", {})) == {"ok": True} and not run.folder.exists()


def test_a_run_is_queued_while_it_is_about_to_begin_and_dead_where_its_worker_never_spoke(
        routes: Routes, tmp_path: Path, data: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def look(run: Run, wanted: int | None) -> None:
        asking = threading.Thread(target=lambda: seen.append(told(get(routes, "runs"))["runs"][0]["state"]))
        asking.start()
        asking.join()

    broken = tmp_path / "broken.py"
    broken.write_text("import nowhere_to_be_found\n", encoding="utf-8")
    monkeypatch.setattr("aprendiz.worker.client.PROGRAM", broken)
    routes.desk.before = look
    run = routes.desk.begin({"data": {"path": str(data), "caption": "a wall"}, "training": {"steps": 2}})
    assert seen == ["queued"]
    routes.desk._workers[run.folder].wait(30)
    answer = told(get(routes, f"runs/{run.name}/events"))
    assert answer["state"] == "dead" and "nowhere_to_be_found" in answer["problems"][0]["text"]
    assert told(get(routes, "runs"))["runs"][0]["busy"] is False
    with run.locked():
        assert told(get(routes, f"runs/{run.name}/events"))["state"] == "queued"


def test_a_job_with_problems_makes_no_run(desk: Desk, data: Path, tmp_path: Path, answers: Answers) -> None:
    (data / "broken.png").write_bytes(b"no picture")
    with pytest.raises(AprendizError) as raised:
        desk.begin({"data": {"path": str(data)}, "training": {"steps": 2}})
    assert [problem.where for problem in raised.value.problems] == ["broken.png"]
    answers("page: Start with a broken picture", raised.value)
    with pytest.raises(AprendizError) as raised:
        desk.begin({"data": {"path": str(data)}, "training": {"steps": 0}, "method": {"name": "lora", "rank": 0}})
    assert {problem.where for problem in raised.value.problems} == {"training.steps", "method.rank"}
    assert not (tmp_path / "out").exists()


def test_a_check_tells_of_broken_pictures_and_what_the_run_comes_to(routes: Routes, data: Path) -> None:
    whole = (data / "a.png").read_bytes()
    (data / "a.png").write_bytes(whole[:len(whole) // 2])  # its header is fine: only reading all of it tells
    values = {"data": {"path": str(data)}, "training": {"steps": 7}}
    end = time.monotonic() + 120
    while not (answer := told(post(routes, "check", {"form": filled(values)})))["done"] and time.monotonic() < end:
        time.sleep(0.1)
    assert answer["forecast"]["steps"] == 7 and answer["forecast"]["lines"]
    found = {(problem["where"], problem["warning"]) for problem in answer["problems"]}
    assert {("a.png", False), ("b.png", True)} <= found and ("b.png", False) not in found


def test_what_comes_before_a_run_hears_what_was_estimated_of_it(desk: Desk, data: Path, user_folder: Path) -> None:
    class HeardError(Exception):
        """Ends the start: no worker is wanted here."""

    def heard(run: Run, wanted: int | None) -> None:
        raise HeardError(wanted)

    desk.before = heard
    values = {"data": {"path": str(data), "caption": "a wall"}, "training": {"steps": 2}}
    with pytest.raises(HeardError, match="None"):
        desk.begin(values)
    end = time.monotonic() + 120
    while not (answer := desk.estimate(values))["done"] and time.monotonic() < end:
        time.sleep(0.1)
    assert answer["wanted"] > 10_000_000  # micro alone has more
    with pytest.raises(HeardError, match=f"^{answer['wanted']}$"):
        desk.begin(values)
    with pytest.raises(HeardError, match="None"):
        desk.begin({**values, "training": {"steps": 3}})


@pytest.fixture
def slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, Path]]:
    """Estimates that note in a file that they have begun, and take until another is there."""
    program, begun, going = tmp_path / "slow.py", tmp_path / "begun", tmp_path / "go"
    begun.touch()
    program.write_text(f"import json, os, sys, time\nopen({str(begun)!r}, 'a').write('x')\n"
                       f"while not os.path.exists({str(going)!r}): time.sleep(0.02)\n"
                       "print(json.dumps({'lines': [json.load(sys.stdin)['training']['steps']]}))\n", encoding="utf-8")
    monkeypatch.setattr("aprendiz.views.questions.PROGRAM", program)
    yield begun, going
    going.touch()


def test_pages_with_different_settings_all_get_their_estimate(routes: Routes, data: Path, slow: tuple[Path, Path]) -> None:
    begun, going = slow
    waiting = {steps: {"data": {"path": str(data)}, "training": {"steps": steps}} for steps in range(1, CHECKS + 3)}
    got = {}
    for _ in range(3):
        assert not any(told(post(routes, "estimate", {"form": filled(values)}))["done"] for values in waiting.values())
    going.touch()
    end = time.monotonic() + 60
    while waiting and time.monotonic() < end:
        for steps, values in [*waiting.items()]:
            answer = told(post(routes, "estimate", {"form": filled(values)}))
            if answer["done"]:
                got[steps] = answer["lines"]
                del waiting[steps]
        time.sleep(0.05)
    assert got == {steps: [steps] for steps in range(1, CHECKS + 3)}
    assert len(begun.read_text(encoding="utf-8")) == CHECKS + 2  # each once: none was ended for another


def test_estimates_that_nobody_asks_for_any_more_make_room(desk: Desk, data: Path, slow: tuple[Path, Path],
                                                           monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("aprendiz.views.questions.AWAITED", 0.0)
    for steps in range(1, CHECKS + 3):
        assert desk.estimate({"data": {"path": str(data)}, "training": {"steps": steps}}) == {"done": False}
    assert [json.loads(key)[1]["training"]["steps"] for key in desk._questions._checks] == list(range(3, CHECKS + 3))


def test_an_estimate_needs_no_look_at_the_pictures_and_is_silent_about_what_is_wrong(routes: Routes, data: Path) -> None:
    (data / "broken.png").write_bytes(b"no picture")
    values = {"data": {"path": str(data)}, "training": {"steps": 7}}
    end = time.monotonic() + 120
    while not (answer := told(post(routes, "estimate", {"form": filled(values)})))["done"] and time.monotonic() < end:
        time.sleep(0.1)
    assert answer["lines"][0].startswith("Steps: 7.") and answer["lines"][1].startswith("Memory: about 0.")
    for wrong in ({"training": {"steps": 0}}, {"data": {"path": "/etc"}}, {"base": {"path": "/nowhere"}}):
        assert told(post(routes, "estimate", {"form": filled({**values, **wrong})})) == {"done": True, "lines": []}


# Who may ask


def client(routes: Routes, **how: Any) -> TestClient:
    app = Starlette()
    mount(app, routes, public=("testserver",), **how)
    return TestClient(app)


def test_another_sites_page_and_a_foreign_name_for_this_machine_are_refused(routes: Routes) -> None:
    asked = client(routes)
    assert asked.get("/aprendiz/runs").status_code == 200
    assert asked.get("/aprendiz/runs", headers={"Origin": "http://testserver"}).status_code == 200
    assert asked.get("/aprendiz/runs", headers={"Origin": "http://evil.example"}).status_code == 403
    assert asked.get("/aprendiz/runs", headers={"Origin": "null"}).status_code == 403
    assert asked.get("/aprendiz/runs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403
    assert asked.get("/aprendiz/runs", headers={"Host": "evil.example"}).status_code == 403
    assert asked.post("/aprendiz/captions", content="{}", headers={"Origin": "http://evil.example"}).status_code == 403


def test_whoever_has_not_logged_in_gets_nothing(routes: Routes) -> None:
    asked = client(routes, allowed=lambda request: request.headers.get("x-key") == "right")
    for path in ("runs", "words", "page.js", "thumbnail?folder=x&name=y"):
        assert asked.get(f"/aprendiz/{path}").status_code == 401
    assert asked.get("/aprendiz/runs", headers={"X-Key": "right"}).status_code == 200


def test_a_request_that_is_too_large_or_makes_no_sense_is_refused(routes: Routes) -> None:
    asked = client(routes)
    assert asked.post("/aprendiz/captions", content=b"x" * (5 << 20)).status_code == 413
    for body in (b"", b"[]", b"\xff\xfe", b'{"captions": 5, "folder": 7}', b'{"form": 3}', b"[" * 100_000):
        for path in ("captions", "pictures", "check"):
            assert asked.post(f"/aprendiz/{path}", content=body).status_code == 400, (path, body[:20])
    assert asked.get("/aprendiz/nothing").status_code == 404
    assert asked.put("/aprendiz/runs").status_code == 405


def test_a_script_that_failed_once_can_be_asked_for_by_another_name(routes: Routes) -> None:
    asked = client(routes)
    plainly = asked.get("/aprendiz/page-parts.js")
    again = asked.get("/aprendiz/again-7/page-parts.js")
    assert again.status_code == 200 and again.content == plainly.content
    assert again.headers["content-type"].startswith("text/javascript")
    for path in ("again-7/words", "again-7/runs", "other/page.js", "again-7/again-8/page.js", "again-7/routes.py"):
        assert asked.get(f"/aprendiz/{path}").status_code == 404, path


def test_answers_cannot_be_taken_for_a_page(routes: Routes, data: Path) -> None:
    (data / "b.txt").write_text(SCRIPT, encoding="utf-8")
    answer = client(routes).post("/aprendiz/pictures", json={"form": filled({"data": {"path": str(data)}})})
    assert SCRIPT in answer.text
    assert answer.headers["content-type"].startswith("application/json") and answer.headers["x-content-type-options"] == "nosniff"


# Trying out


def test_what_is_tried_is_told_to_generate_as_each_method_says(tmp_path: Path) -> None:
    file = tmp_path / "fish-000020.safetensors"
    file.write_bytes(b"x")
    assert studio.result_arguments("lora", file, 0.5, None) == ["--lora", f"{file}:0.5"]
    shown = studio.result_arguments("controlnet", file, 1.5, tmp_path)
    assert shown == ["--controlnet", f"{file}:1.5", "--control", str(tmp_path)]
    assert studio.picture_arguments({"prompt": "--out x", "seed": 3, "count": "99", "negative": ""}) == [
        "--prompt=--out x", "--seed=3", "--count=16"]
    word = studio.called(studio.result_arguments("textual_inversion", file, 1.0, None), "zwx", tmp_path / "tries")
    assert Path(word[1]).name == "zwx.safetensors" and Path(word[1]).read_bytes() == b"x"  # prompts call it by its own name


@pytest.mark.parametrize("asked", [{"run": "../one"}, {"run": "one", "file": "../../secret.safetensors"},
                                   {"run": "one", "file": "job.json"}, {"file": "/etc/passwd"}, {"base": "/etc/passwd"},
                                   {"control": "/etc/passwd"}, {"run": "one", "file": "none.safetensors"}])
def test_nothing_outside_the_folders_that_may_be_opened_is_tried(routes: Routes, tmp_path: Path, data: Path,
                                                                 asked: dict[str, str], answers: Answers) -> None:
    made(tmp_path, data)
    (tmp_path / "secret.safetensors").write_bytes(b"")
    refused = told(post(routes, "try", {"prompt": "a fish", **asked}), 400)
    assert refused["problems"] and not routes.desk.studio.place().exists()
    answers(f"page: Try it with {asked}", refused["problems"][0]["text"].replace(str(tmp_path), "..."))


def test_a_condition_picture_is_kept_as_its_pixels_alone_under_a_key(routes: Routes, desk: Desk, tmp_path: Path,
                                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    told_in_it = PngImagePlugin.PngInfo()
    told_in_it.add_text("parameters", SCRIPT)
    data = BytesIO()
    Image.new("RGBA", (40, 24), (10, 20, 30, 128)).save(data, "PNG", pnginfo=told_in_it)
    kept = told(routes.handle(Request("POST", "condition", body=data.getvalue())))
    assert (kept["width"], kept["height"]) == (40, 24)
    file = get(routes, "condition", key=kept["key"]).file
    assert file is not None and SCRIPT.encode() not in file.read_bytes()
    with Image.open(file) as picture:
        assert picture.mode == "RGBA" and picture.getpixel((0, 0)) == (10, 20, 30, 128)
    net = tmp_path / "allowed" / "net.safetensors"
    net.write_bytes(b"x")
    asked: list[list[str]] = []
    monkeypatch.setattr(studio, "method_of", lambda file: "controlnet")
    monkeypatch.setattr(desk.studio, "side", lambda words, files: asked.append(list(words)) or studio.Side("k", [], tmp_path))
    told(post(routes, "try", {"prompt": "a fish", "file": str(net), "kept": kept["key"]}))
    assert asked[1][-4:] == ["--controlnet", f"{net}:1", "--control", str(file)]


@pytest.mark.parametrize("key", ["", "..", "../../allowed/a", "0" * 32, "0" * 31 + "/"])
def test_a_condition_picture_is_found_by_its_key_alone(routes: Routes, key: str) -> None:
    assert get(routes, "condition", key=key).status == 400
    if key:
        refused = told(post(routes, "try", {"prompt": "a fish", "file": "x.safetensors", "kept": key}), 400)
        assert refused["problems"][0]["text"].startswith("This condition picture is not there any more")


def test_what_is_no_picture_or_too_large_a_one_is_refused_and_not_kept(routes: Routes, tmp_path: Path, answers: Answers) -> None:
    wide = BytesIO()
    Image.new("1", (5000, 8)).save(wide, "PNG")
    for given, data in (("a text", SCRIPT.encode()), ("nothing", b""), ("a picture of 5000 x 8 pixels", wide.getvalue()),
                        ("half a picture", wide.getvalue()[:60]), ("17 MB", b"\0" * (17 << 20))):
        refused = told(routes.handle(Request("POST", "condition", body=data)), 400)["problems"]
        assert [problem["where"] for problem in refused] == ["control"]
        answers(f"page: {given} as condition picture", refused[0]["text"])
    assert not list((tmp_path / "out").rglob("*.png")) and not list((tmp_path / "out").rglob(".*.sent"))
    assert client(routes).post("/aprendiz/condition", content=b"x" * (17 << 20)).status_code == 413


def test_what_finished_while_the_host_was_closed_is_placed_once_and_over_nothing(tmp_path: Path, data: Path,
                                                                                 user_folder: Path) -> None:
    looked_in = tmp_path / "loras"

    def finished(run: Run) -> str:
        return results.prompt(results.place(run, lambda kind: looked_in if kind == "lora" else None), None)

    run, other = made(tmp_path, data), made(tmp_path, data, name="other", steps=4)
    for one, words in ((run, "own"), (other, "else")):
        one.attempt = 1
        one.event("finished", step=3, file=one.file)
        write_tensors(one.file, words)
    (run.folder / UNPLACED).touch()  # begun by this host; the other one was not
    looked_in.mkdir()
    write_tensors(looked_in / "one.safetensors", "somebody's")
    before = (looked_in / "one.safetensors").read_bytes()
    routes = Routes(Desk(lambda: tmp_path / "out", at_once([]), finished))  # of a host that was started anew
    assert told(post(routes, "missed", {})) == {"placed": ["one"]}
    assert (looked_in / "one.safetensors").read_bytes() == before
    assert sorted(file.name for file in looked_in.iterdir()) == ["one-2.safetensors", "one.safetensors"]
    (looked_in / "one-2.safetensors").unlink()  # the person does not want it there
    assert told(post(routes, "missed", {})) == {"placed": []} and len(list(looked_in.iterdir())) == 1
    assert told(post(Routes(Desk(lambda: tmp_path / "out", at_once([]))), "missed", {})) == {"placed": []}


def write_tensors(file: Path, words: str) -> None:
    save_file({"lora.weight": np.frombuffer(words.encode(), np.uint8)}, file)


def test_a_drawn_picture_is_found_by_its_key_alone(routes: Routes, tmp_path: Path) -> None:
    for key in ("", "..", "../../one", "0" * 32):
        assert get(routes, "drawn", key=key, n="0").status == 400 and get(routes, "tried", key=key).status == 400


# Controls


def test_every_setting_is_a_control_and_comes_back_as_it_was() -> None:
    found = controls.controls()
    assert {control.where for control in found if not control.method} == {
        f"{section}.{name}" for section, settings in SECTIONS.items() for name in controls.knobs(settings)}
    assert len({control.id for control in found}) == len(found)
    job = Job.read({"data": "pictures", "steps": 10, "learning_rate": "0.005:100, 1e-5", "sample_prompts": ["a fish", "a cat"],
                    "clip_skip": 2, "zero_terminal_snr": False, "method": {"rank": 8, "alpha": 4.0}, "seed": 2**40})
    shown = controls.filled(found, job.values())
    back = controls.job_values("lora", zip(found, shown))
    assert Job.read(back) == job
    plain = Job.read({"data": "p"})
    filled = controls.filled(found, plain.values())
    assert Job.read(controls.job_values("lora", zip(found, filled))) == plain
    nothing = controls.filled(found, {"data": {"path": "p"}, "output": {"name": plain.output.name}})
    assert [one.where for one, is_, was in zip(found, filled, nothing) if is_ != was] == [], "nothing is set that nobody has set"


def test_a_form_becomes_a_jobs_values_and_a_run_fills_a_form(routes: Routes, tmp_path: Path, data: Path) -> None:
    held = {"aprendiz-data-path": str(data), "aprendiz-training-steps": "7", "aprendiz-lora-rank": "8",
            "aprendiz-textual-inversion-vectors": "3", "aprendiz-data-flip": True,
            "aprendiz-samples-sample-prompts": "a fish\na cat\n"}
    values = form.values({"method": "lora", "controls": held})
    assert values == {"method": {"name": "lora", "rank": 8}, "training": {"steps": 7}, "data": {"path": str(data), "flip": True},
                      "samples": {"sample_prompts": ["a fish", "a cat"]}}  # nothing of other methods
    run = made(tmp_path, data, rank=8, again=True)
    there = told(get(routes, "runs/one/form"))
    assert there == {"method": "lora", "controls": {"aprendiz-data-path": str(data), "aprendiz-training-steps": "3",
                                                     "aprendiz-output-name": "one", "aprendiz-lora-rank": 8}}
    back = Job.read(form.values(there))
    assert back == Job.read({**run.values(), "output": {**run.values()["output"], "again": False}})
    for wrong in ({}, {"method": "lora"}, {"method": "lora", "controls": 3}, {"method": 3, "controls": {}}, 3):
        assert post(routes, "check", {"form": wrong}).status == 400 or told(post(routes, "check", {"form": wrong}))["problems"]


def test_a_path_may_be_pasted_with_the_quotation_marks_that_windows_copies(routes: Routes, data: Path) -> None:
    base = "C:\\models\\a b.safetensors"
    held = {"aprendiz-data-path": f' "{data}" ', "aprendiz-base-path": f'"{base}"', "aprendiz-data-trigger": '"zwx"'}
    values = {"method": {"name": "lora"}, "base": {"path": base}, "data": {"path": str(data), "trigger": '"zwx"'}}
    asked = {"method": "lora", "controls": held}
    assert form.values(asked) == values
    assert told(post(routes, "pictures", {"form": asked}))["total"] == 3


def test_a_number_may_have_a_comma() -> None:
    held = {"aprendiz-optimizer-learning-rate": "0,0001", "aprendiz-training-minutes": "0,5", "aprendiz-data-trigger": "1,2"}
    values = {"optimizer": {"learning_rate": 0.0001}, "training": {"minutes": 0.5}, "data": {"trigger": "1,2"}}
    assert form.values({"method": "lora", "controls": held}) == {"method": {"name": "lora"}, **values}


def test_what_follows_from_the_rest_of_a_job_is_not_filled_in(tmp_path: Path) -> None:
    prodigy = Job.read({"data": "p", "optimizer": {"optimizer": "prodigy", "weight_decay": 0.012345678}, "seed": 3})
    held = form.of_job(prodigy.values())["controls"]
    assert prodigy.optimizer.learning_rate == 1 and "aprendiz-optimizer-learning-rate" not in held
    assert held["aprendiz-optimizer-weight-decay"] == "0.012345678"
    assert Job.read(form.values(form.of_job(prodigy.values()))) == prodigy
    control = Job.read({"data": "p", "method": {"name": "controlnet", "control": "scribble"}})
    assert control.output.name and "aprendiz-output-name" not in form.of_job(control.values())["controls"]
    assert form.of_job(Job.read({"data": "p", "name": "mine"}).values())["controls"]["aprendiz-output-name"] == "mine"
    broken = control.values() | {"training": {**control.values()["training"], "steps": 0}}
    assert form.of_job(broken)["controls"]["aprendiz-training-steps"] == "0"


def test_a_run_of_a_method_that_is_gone_fills_no_form(routes: Routes, tmp_path: Path, data: Path, answers: Answers) -> None:
    run = made(tmp_path, data)
    (run.folder / "job.json").write_text(json.dumps({**run.values(), "method": {"name": "sorcery"}}), encoding="utf-8")
    problem = told(get(routes, "runs/one/form"), 400)["problems"][0]
    assert "sorcery" in problem["text"]
    answers("page: the settings of a run of the method 'sorcery'", problem["text"])


@pytest.mark.parametrize(("tag", "title"), [("es", "Inversión textual"), ("pt-BR", "Inversão textual")])
def test_methods_presets_and_sections_have_titles_in_the_persons_language(routes: Routes, monkeypatch: pytest.MonkeyPatch,
                                                                          tag: str, title: str) -> None:
    english = told(get(routes, "words"))
    monkeypatch.setenv("APRENDIZ_LANGUAGE", tag)
    shown = told(get(routes, "words"))
    assert shown["methods"]["textual_inversion"]["title"] == title
    for part in ("sections", "presets", "cards"):
        assert not {one["title"] for one in shown[part]} & {one["title"] for one in english[part]}


def test_what_is_wrong_with_a_job_that_is_to_start_is_told_and_no_run_is_made(routes: Routes, tmp_path: Path, data: Path) -> None:
    values = {"data": {"path": str(data)}, "training": {"steps": 0}, "base": {"path": "/etc/passwd"}}
    problems = told(post(routes, "start", {"form": filled(values)}), 400)["problems"]
    assert {problem["where"] for problem in problems} == {"training.steps", "base.path"}
    assert not (tmp_path / "out").exists()


def test_the_hosts_bases_are_listed_as_they_are_at_the_moment(desk: Desk) -> None:
    files = ["/models/one.safetensors"]
    routes = Routes(desk, lambda: files)

    def listed() -> list[str]:
        found: list[str] = next(one for one in told(get(routes, "words"))["settings"] if one["where"] == "base.path")["choices"]
        return found

    assert listed() == ["micro", *files]
    files.append("/models/two.safetensors")
    assert listed() == ["micro", *files]


@pytest.mark.parametrize("tag", ["es", "pt-BR"])
def test_every_control_has_a_label_in_the_persons_language(tag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    english = [control.label for control in controls.controls()]
    monkeypatch.setenv("APRENDIZ_LANGUAGE", tag)
    shown = controls.controls()
    same = {control.where for control, name in zip(shown, english) if control.label == name}
    assert same <= {"base.path", "base.vae", "training.tensorboard", "training.wandb", "method.alpha", "method.control",
                    "optimizer.beta1", "optimizer.beta2"}, sorted(same)
    assert next(control.help for control in shown if control.name == "rank").endswith(" (rank)")
    assert next(control.help for control in shown if control.where == "data.path").endswith(" (data)")


def test_what_is_typed_wrong_gets_the_schemas_own_sentence(answers: Answers) -> None:
    found = [control for control in controls.controls() if control.method in ("", "lora")]
    shown = dict(zip([control.where for control in found], controls.filled(found, {})))
    typed = {**shown, "data.path": "x", "training.steps": "many", "optimizer.learning_rate": "fast", "base.clip_skip": "99"}
    with pytest.raises(ProblemsError) as raised:
        Job.read(controls.job_values("lora", [(control, typed[control.where]) for control in found]))
    assert {problem.where for problem in raised.value.problems} == {"training.steps", "optimizer.learning_rate", "base.clip_skip"}
    answers("page: steps 'many', learning_rate 'fast', clip_skip '99'", raised.value)


def test_every_preset_names_settings_there_are_with_values_they_take() -> None:
    for preset in [*subjects(), *cards()]:
        values: dict[str, Any] = {"data": "p", "method.name": preset.method or "lora"}
        known = {control.where for control in controls.controls() if control.method in ("", preset.method)}
        assert set(preset.values) <= known
        assert Job.read({**values, **preset.values})


# The port


def test_a_port_in_use_is_told_of_with_the_next_free_one_and_without_port_the_next_is_taken(answers: Answers) -> None:
    from aprendiz import app
    with app.open_port(None) as held:
        taken = held.getsockname()[1]
        with pytest.raises(RunError) as raised:
            app.open_port(taken)
        free = raised.value.problem.fields["free"]
        assert free > taken and str(free) in str(raised.value)
        answers("app --port of a server that runs", str(raised.value).replace(str(taken), "7860").replace(str(free), "7861"))
        with app.open_port(None) as other:
            assert other.getsockname()[1] > taken
    with pytest.raises(RunError, match="no port"):
        app.open_port(70000)


def test_the_command_ends_with_one_sentence_where_its_port_is_in_use() -> None:
    from aprendiz import app
    with app.open_port(None) as held:
        command = [sys.executable, "-m", "aprendiz", "app", "--port", str(held.getsockname()[1])]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120, check=False)
    assert done.returncode == 1 and done.stdout == ""
    assert "is in use" in done.stderr and len(done.stderr.strip().splitlines()) == 1
