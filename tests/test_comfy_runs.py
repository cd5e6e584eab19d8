"""The ComfyUI shell without ComfyUI: workers held and stopped, results placed, routes that look nowhere else."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from comfy_door import Host, Interrupted, door

from aprendiz import registry
from aprendiz.micro.pictures import write_pictures
from aprendiz.views import comfy, comfy_nodes, ready, results

runs, routes, draw, sources, train = (door(f"nodes.{name}") for name in ("runs", "routes", "draw", "sources", "train"))
card = door("aprendiz.views.card")
run_module, settings_module, errors, client = (
    door(f"aprendiz.{name}") for name in ("run", "settings", "errors", "worker.client"))


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path / "output")


def small_run(tmp_path: Path, steps: int, **more: Any) -> Any:
    """A run on micro with two pictures."""
    write_pictures(tmp_path / "pictures", "fish", count=2)
    job = settings_module.Job.read({"data": str(tmp_path / "pictures"), "steps": steps, "rank": 2, "sampler_steps": 2,
                                    "name": "fish", "sample_prompts": ["a fish"], "device": "cpu", **more})
    return run_module.Run.create(tmp_path / "output", job, "digest")


def test_a_run_pauses_for_a_prompt_that_finds_no_room_beside_it_and_goes_on_when_the_queue_is_quiet(
        tmp_path: Path, host: Host, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "QUIET", 0.5)
    run = small_run(tmp_path, steps=100000, save_every_steps=50000)
    watch = runs.take_up(run, host, None, False)
    news = iter(watch.news.get, None)
    assert any(event["event"] == "step" for event in news)
    host.prompt = "one that fits"
    steps = (event["step"] for event in news if event["event"] == "step")
    assert [next(steps) for _ in range(30)][-1] > 30 and run.state == "running"
    host.prompt, host.lacking = "one that does not", True
    assert next(event for event in news if event["event"] == "paused")["by"] == "host"
    told = run.folder / "commands.jsonl"
    size = told.stat().st_size
    until = time.monotonic() + 60
    while told.stat().st_size == size and time.monotonic() < until:
        time.sleep(0.1)
    assert told.stat().st_size > size, "still at it: the pause is asked for again"
    assert run.state == "paused" and host.freed == ["soon"]
    host.prompt = None
    assert next(event for event in news if event["event"] in ("paused", "resumed"))["event"] == "resumed"
    assert host.freed == ["soon", "soon"]
    runs.stop(run)
    assert watch.wait(60)


def test_an_interrupted_node_leaves_at_once_and_the_same_graph_goes_on(tmp_path: Path, host: Host, user_folder: Path) -> None:
    run = small_run(tmp_path, steps=100000, save_every_steps=50000)
    watch = runs.take_up(run, host, "9", False)
    seen = []

    def show(event: dict[str, Any]) -> None:
        seen.append(event["event"])
        host.stopping = host.stopping or event["event"] == "step"

    with pytest.raises(Interrupted):
        runs.attend(watch, host, show)
    assert watch.wait(60) and run.state == "stopped" and host.freed == ["now"]
    assert seen.index("step") > seen.index("ready")
    assert [name for name, _ in host.sent] == ["run", "end"] and host.sent[1][1]["state"] == "stopped"
    done = run.step
    assert done > 0
    again = runs.take_up(run, host, "9", False)
    assert again is not watch
    resumed = next(event for event in iter(again.news.get, None) if event["event"] == "resumed")
    assert resumed["step"] == done
    runs.stop(run)
    assert again.wait(60)
    with pytest.raises(errors.RunError, match="stopped after step"):
        runs.check_end(run.name, again.last)


@pytest.mark.parametrize(("node", "device", "freed"), [("9", "auto", ["now"]), (None, "auto", ["soon"]), (None, "cuda", ["soon"]),
                                                       ("9", "cpu", []), (None, "cpu", []), (None, "cuda:1", [])])
def test_the_hosts_models_leave_its_card_for_a_run_on_it_and_never_below_a_prompt(
        node: str | None, device: str, freed: list[str], tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_started(run: Any, keep_running: bool) -> None:
        raise errors.RunError("It is not started.")

    monkeypatch.setattr(runs, "start", not_started)
    host.drawn_with = "cuda"
    with pytest.raises(errors.RunError, match="not started"):
        runs.take_up(small_run(tmp_path, steps=1, device=device), host, node, False)
    assert host.freed == freed


def test_a_worker_that_is_killed_is_told_of_on_the_node(tmp_path: Path, host: Host, user_folder: Path,
                                                        answers: Callable[[str, object], None]) -> None:
    run = small_run(tmp_path, steps=100000)
    watch = runs.take_up(run, host, None, False)

    def kill(event: dict[str, Any]) -> None:
        if event["event"] == "ready":
            watch.worker.process.kill()

    with pytest.raises(errors.AprendizError) as told:
        runs.attend(watch, host, kill)
    assert "resume" in str(told.value) and watch.wait(60)
    answers("ComfyUI: the worker is killed from outside", told.value)


def test_a_run_that_is_taken_up_again_is_queued_from_the_moment_the_page_is_told(
        tmp_path: Path, host: Host, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, told = small_run(tmp_path, steps=9), []
    run.attempt = 1
    for event in ("queued", "ready", "stopped"):
        run.event(event, **({"step": 3} if event == "stopped" else {}))

    def silent(run: Any, keep_running: bool) -> Any:
        """A worker that has not said anything yet."""
        process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        return client.Worker(run, process, (run.folder / "events.jsonl").stat().st_size)

    def asked_at_once(name: str, values: dict[str, Any]) -> None:
        told.append((name, routes.events_since(run, 0, "en")["state"], routes.summary(run)["state"]))

    monkeypatch.setattr(runs, "start", silent)
    monkeypatch.setattr(host, "send", asked_at_once)
    watch = runs.take_up(run, host, None, False)
    assert told == [("run", "queued", "queued")] and run.state == "stopped"
    run.attempt = 2
    run.event("queued")
    run.event("stopped", step=3)
    assert runs.state(run) == "stopped", "it has spoken"
    watch.worker.let_go()
    assert watch.wait(60)


def test_pages_are_told_whose_graph_a_run_belongs_to(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, dict[str, Any]]] = []
    server = SimpleNamespace(client_id="a page", send_sync=lambda name, values: told.append((name, values)))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=SimpleNamespace(instance=server)))
    door("nodes.host").send("run", {"id": "1", "node": "2:1"})
    assert told == [("aprendiz.run", {"id": "1", "node": "2:1", "client": "a page"})]


@pytest.fixture
def queue(tmp_path: Path, host: Host, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Any, bool]]:
    """Queues a small training node with these widgets."""
    for module in (train, routes, sources):
        monkeypatch.setattr(module, "host", host)
    write_pictures(tmp_path / "pictures", "fish", count=2)

    def queued(**given: Any) -> tuple[Any, bool]:
        told: tuple[Any, bool] = train.train(
            "AprendizTrainLora", "9", {"path": "micro"}, {"data": {"path": str(tmp_path / "pictures")}},
            {"steps": 1, "rank": 2, "name": "fish", "device": "cpu", **given}, {"workflow": {"id": "graph 1"}})
        return told

    return queued


def test_pages_are_told_which_of_their_graphs_a_run_belongs_to(queue: Callable[..., Any], host: Host,
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "start", lambda run, keep_running: None)
    run, _ = queue(when="background")
    run.attempt = 1
    run.event("finished", step=1, file=run.file)
    assert runs.WATCHES[run.folder].wait(60) and queue(when="background")[1]
    assert [values["graph"] for name, values in host.sent if name == "run"] == ["graph 1"] * 2


@pytest.mark.parametrize("keep", [False, True])
def test_a_run_outlives_the_host_only_where_that_was_asked_for(keep: bool, queue: Callable[..., Any],
                                                               monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, bool]] = []

    def not_started(run: Any, keep_running: bool) -> None:
        asked.append((run, keep_running))
        raise errors.RunError("It is not started.")

    monkeypatch.setattr(runs, "start", not_started)
    with pytest.raises(errors.RunError, match="not started"):
        queue(when="background", keep_running=keep)
    with pytest.raises(errors.RunError, match="not started"):
        routes.command(asked[0][0], "start")
    assert [kept for _, kept in asked] == [keep, keep]


@pytest.mark.parametrize("again", [True, False])
def test_a_run_in_the_background_is_trained_anew_once_that_is_asked_for_and_gives_its_result_until_then(
        again: bool, queue: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def finishes(run: Any, keep_running: bool) -> Any:
        """A worker that has nothing to do."""
        begun = (run.folder / "events.jsonl").stat().st_size
        run.file.write_bytes(b"weights")
        run.attempt = 1
        run.event("queued")
        run.event("finished", step=1, file=run.file)
        return client.Worker(run, subprocess.Popen([sys.executable, "-c", ""], stdin=subprocess.PIPE), begun)

    monkeypatch.setattr(runs, "start", finishes)
    monkeypatch.setattr(train, "Teller", lambda run, node: SimpleNamespace(show=lambda event: None))
    first, done = queue(when="background", again=again)
    assert not done and runs.WATCHES[first.folder].wait(60)
    assert queue(when="background", again=again, steps=2)[0].folder != first.folder, "another job"
    second, done = queue(when="background", again=again)
    assert done and second.folder == first.folder
    third, done = queue(when="background", again=True)
    if again:
        assert done and third.folder == first.folder, "an unchanged graph gives what it gave"
    else:
        assert not done and third.folder != first.folder and runs.WATCHES[third.folder].wait(60)
    same, done = queue(when="background", again=True)  # as ComfyUI asks where any other run has ended
    assert done and same.folder == third.folder
    assert queue(when="wait", again=True)[0].folder not in (first.folder, third.folder), "only the background hands out"


@pytest.mark.parametrize(("method", "places"), [
    ("lora", {"lora": "loras/zwx.safetensors"}), ("textual_inversion", {"embedding": "embeddings/zwx.safetensors"}),
    ("controlnet", {"controlnet": "controlnet/zwx.safetensors"}),
    ("pivotal", {"embedding": "embeddings/zwx.safetensors", "lora": "loras/zwx-lora.safetensors"})])
def test_what_a_method_writes_lands_where_the_host_looks_for_it(method: str, places: dict[str, str], tmp_path: Path, host: Host,
                                                               user_folder: Path) -> None:
    values = {"data": str(tmp_path), "steps": 1, "name": "zwx", "method": {"name": method}}
    run = run_module.Run.create(tmp_path / "output", settings_module.Job.read(values), "digest")
    for name in places.values():
        (run.folder / Path(name).name).write_bytes(name.encode())
    placed = runs.place(run, host)
    assert {kind: file.relative_to(host.folder).as_posix() for kind, file in placed.items()} == places
    assert runs.place(run, host) == placed


@pytest.mark.parametrize("method", list(registry.methods()))
def test_every_method_has_a_place_in_the_host(method: str) -> None:
    files = results.files(method, Path("name.safetensors"))
    assert files and all(kind in comfy_nodes.FOLDERS for kind in files)


def test_a_result_is_in_its_place_before_the_page_is_told_of_the_end(tmp_path: Path, user_folder: Path) -> None:
    there: list[bool] = []

    class Listing(Host):
        def send(self, name: str, values: dict[str, Any]) -> None:
            """Looks whether the file is there."""
            super().send(name, values)
            there.append((self.folder / "loras" / "fish.safetensors").is_file())

    host = Listing(tmp_path / "host")
    watch = runs.take_up(small_run(tmp_path, steps=1), host, "9", True)
    assert watch.wait(120)
    assert [(name, values.get("state")) for name, values in host.sent] == [("run", None), ("end", "finished")]
    assert there == [False, True]


def test_routes_find_runs_by_digest_and_pictures_within_them_alone(tmp_path: Path, user_folder: Path) -> None:
    run = small_run(tmp_path, steps=1)
    (run.samples).mkdir()
    (run.samples / "step-000000-0.png").write_bytes(b"picture")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (run.folder / "link.png").symlink_to(tmp_path / "secret.png")
    id = runs.run_id(run.folder)
    assert routes.find(id).folder == run.folder
    assert routes.inside(run.folder, "samples/step-000000-0.png").read_bytes() == b"picture"
    for path in ("../../../secret.png", str(tmp_path / "secret.png"), "link.png", "job.json", "samples", "nothing.png"):
        with pytest.raises(routes.Refused):
            routes.inside(run.folder, path)
    for name in ("", "..", str(run.folder), "0" * 16):
        with pytest.raises(routes.Refused):
            routes.find(name)


def test_routes_tell_the_events_since_an_offset_in_the_persons_language(tmp_path: Path, user_folder: Path) -> None:
    run = small_run(tmp_path, steps=1)
    told = routes.events_since(run, 0, "en")
    assert [event["event"] for event in told["events"]] == ["queued"] and told["state"] == "queued"
    run.say("{name} is {value}. It must be at least {low}.", name="steps", value=0, low=1)
    more = routes.events_since(run, told["offset"], "es")
    assert more["events"][0]["text"] != "steps is 0. It must be at least 1." and "steps" in more["events"][0]["text"]
    assert routes.events_since(run, more["offset"], "es")["events"] == []


def test_the_events_of_a_run_made_anew_under_the_same_name_are_told_apart(tmp_path: Path, user_folder: Path) -> None:
    run = small_run(tmp_path, steps=1)
    told = routes.events_since(run, 0, "en")
    assert told["began"] is not None and routes.events_since(run, told["offset"], "en")["began"] == told["began"]
    shutil.rmtree(run.folder)
    time.sleep(0.02)
    assert small_run(tmp_path, steps=2).folder == run.folder
    assert routes.events_since(run, told["offset"], "en")["began"] != told["began"]
    (run.folder / "events.jsonl").write_text("torn", encoding="utf-8")
    assert routes.events_since(run, 0, "en")["began"] is None


@pytest.mark.parametrize("value", [{"events": [{"a": 1, "b": [1, {"c": None}]}, {}], "é": {"x": [], "y": "\n"}}, [], {}, "a", 5])
def test_answers_are_json_however_they_are_written_down(value: object) -> None:
    assert json.loads(routes.written(value)) == value


def test_a_very_long_run_is_thinned_and_keeps_all_but_steps(tmp_path: Path, user_folder: Path) -> None:
    events = [{"event": "step", "step": step} for step in range(3 * routes.MOST_EVENTS)] + [{"event": "finished"}]
    thin = routes.thinned(events)
    assert len(thin) <= routes.MOST_EVENTS + 1 and thin[-1] == {"event": "finished"}


@pytest.mark.parametrize(("headers", "taken"), [
    ({}, True), ({"Origin": "http://127.0.0.1:8188"}, True), ({"Sec-Fetch-Site": "same-origin"}, True),
    ({"Origin": "http://evil.example"}, False), ({"Origin": "null"}, False), ({"Sec-Fetch-Site": "cross-site"}, False),
    ({"Origin": "http://127.0.0.1:8189"}, False), ({"Sec-Fetch-Site": "same-site"}, False),
])
def test_a_post_of_another_page_is_refused(headers: dict[str, str], taken: bool) -> None:
    assert routes.same_origin(headers, "127.0.0.1:8188") is taken


@pytest.mark.skipif(sys.platform == "win32", reason="Windows opens folders itself")
def test_a_machine_without_a_file_manager_is_told_of(tmp_path: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch,
                                                     answers: Callable[[str, object], None]) -> None:
    run = small_run(tmp_path, steps=1)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(errors.AprendizError) as told:
        routes.open_folder(run)
    assert str(run.folder) in str(told.value)
    answers("ComfyUI: no file manager", told.value)


@pytest.mark.parametrize(("chosen", "given", "told"), [
    ("es", "", "No existe esa orden."), ("pt-BR", "", "Esse comando não existe."), ("fr", "", "There is no such command."),
    (None, "", "Esse comando não existe."), ("es", "en", "There is no such command.")])
def test_mistakes_are_answered_in_the_language_of_the_hosts_page(
        chosen: str | None, given: str, told: str, tmp_path: Path, user_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comfy_host = door("nodes.host")
    monkeypatch.setattr(comfy_host, "LANGUAGE_GIVEN", given)
    monkeypatch.setenv("APRENDIZ_LANGUAGE", given or "es")  # Spanish as an earlier answer may have left it
    monkeypatch.setenv("LC_ALL", "pt_BR.UTF-8")
    folder = tmp_path / "user"
    (folder / "default").mkdir(parents=True)
    settings = json.dumps({"Comfy.Locale": chosen} if chosen else {})
    (folder / "default" / "comfy.settings.json").write_text(settings, encoding="utf-8")
    monkeypatch.setitem(sys.modules, "folder_paths", SimpleNamespace(get_user_directory=lambda: str(folder)))
    web = SimpleNamespace(json_response=lambda body, status: (status, body["error"]))
    monkeypatch.setitem(sys.modules, "aiohttp", SimpleNamespace(web=web))
    run = small_run(tmp_path, steps=1)

    async def work(request: Any) -> None:
        routes.command(run, "dance")

    assert asyncio.run(routes.answer(work)(None)) == (400, told)


def test_every_node_speaks_the_language_of_the_hosts_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class Followed(Exception):
        """The language was looked up, before anything else."""

    def followed() -> None:
        raise Followed

    latest = SimpleNamespace(ComfyExtension=object, io=SimpleNamespace(ComfyNode=object))
    monkeypatch.setitem(sys.modules, "comfy_api.latest", latest)
    monkeypatch.setitem(sys.modules, "comfy_api", SimpleNamespace(latest=latest))
    monkeypatch.setitem(sys.modules, "server", SimpleNamespace(PromptServer=None))
    extension = door("nodes.extension")
    monkeypatch.setattr(extension.host, "follow_language", followed)
    listed = asyncio.run(extension.AprendizExtension().get_node_list())
    assert {node.__name__ for node in listed} == set(comfy_nodes.nodes())
    for node in listed:
        with pytest.raises(Followed):
            node.execute()


@pytest.mark.parametrize("word", ["rm", "", "None", "start;", "../stop"])
def test_a_command_that_is_none_is_refused(word: str, tmp_path: Path, user_folder: Path) -> None:
    run = small_run(tmp_path, steps=1)
    with pytest.raises(routes.Refused):
        routes.command(run, word)
    assert not (run.folder / "commands.jsonl").exists()


def test_the_list_tells_a_run_and_a_node_can_be_made_from_it(tmp_path: Path, user_folder: Path) -> None:
    run = small_run(tmp_path, steps=7)
    line = routes.summary(run)
    assert (line["name"], line["state"], line["steps"], line["method"], line["base"]) == ("fish", "queued", 7, "lora", "micro")
    node = routes.as_node(run)
    assert node["type"] == "AprendizTrainLora" and node["widgets"]["steps"] == 7 and node["widgets"]["rank"] == 2
    assert node["base"]["base"] == "micro" and node["base"]["elsewhere"] == "" and node["options"] == {}
    assert node["dataset"]["folder"] == str(tmp_path / "pictures")
    assert json.loads(json.dumps(line)) == line


def test_a_node_made_from_a_run_asks_for_the_very_same_job(tmp_path: Path, user_folder: Path) -> None:
    wishes = {"flip": True, "repeats": 3, "trigger": "zwx", "clip_skip": 2, "prediction": "epsilon", "loss": "huber",
              "huber_delta": 0.25, "latent_sampling": "once"}
    run = small_run(tmp_path, steps=7, **wishes)
    made = routes.as_node(run, "es")
    asked = {made["type"]: made["widgets"], "AprendizBase": made["base"], "AprendizDatasetFolder": made["dataset"],
             "AprendizDatasetOptions": made["options"]}
    values: dict[str, dict[str, Any]] = {"method": {"name": "lora"}}
    for name, widgets in asked.items():
        for section, inner in comfy.job_values(comfy_nodes.nodes()[name].inputs, widgets).items():
            values.setdefault(section, {}).update(inner)
    values["data"]["path"] = made["dataset"]["folder"]
    assert made["options"] == {"flip": True, "repeats": 3, "latent_sampling": "once"}
    assert settings_module.Job.read(values).hash("digest") == run.job().hash("digest")
    told = dict(made["settings"])
    assert (told["reflejar"], told["repeticiones"], told["pérdida"], told["delta de Huber"]) == ("✓", "3", "huber", "0.25")
    assert "semilla" not in told


def test_a_changed_picture_changes_the_fingerprint_of_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = write_pictures(tmp_path, "fish", count=1)
    before = sources.fingerprint(str(tmp_path))
    assert sources.fingerprint(str(tmp_path)) == before
    time.sleep(0.02)
    files[0].with_suffix(".txt").write_text("another caption", encoding="utf-8")
    assert sources.fingerprint(str(tmp_path)) != before


class Folders:
    """ComfyUI's folders."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def output_folder(self) -> Path:
        return self.root

    def input_folder(self) -> Path:
        return self.root / "input"

    def find(self, kind: str, name: str) -> Path | None:
        return None

    def diffusers_folder(self, name: str) -> Path | None:
        return None

    def stop_here(self) -> None:
        """Nobody interrupts."""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (sources, draw):
        monkeypatch.setattr(module, "host", Folders(tmp_path))
    return tmp_path


def test_a_folder_of_pictures_becomes_a_dataset_with_its_report(folders: Path) -> None:
    write_pictures(folders / "input" / "mine", "fish", count=3)
    for given in (str(folders / "input" / "mine"), "mine"):
        values, images, report, count, small = sources.dataset("AprendizDatasetFolder", given, {"flip": True}, {"trigger": "zwx"})
        assert values["data"] == {"flip": True, "trigger": "zwx", "path": str(folders / "input" / "mine")}
        assert count == 3 and tuple(images.shape) == (3, 256, 256, 3) and len(small) == 3
        assert report.startswith("3 pictures, 3 with a caption.") and "zwx" in report


def test_an_interrupt_is_heard_while_a_large_folder_is_read(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from aprendiz.data import preflight
    write_pictures(folders / "many", "fish", count=40)
    asked = []

    def stop_here() -> None:
        asked.append(1)
        if len(asked) == 45:  # all are hashed, five are read
            raise Interrupted

    monkeypatch.setattr(sources.host, "stop_here", stop_here)
    with pytest.raises(Interrupted):
        sources.dataset("AprendizDatasetFolder", str(folders / "many"), None, {})
    assert len(asked) == 45 and preflight.READERS < 40


def test_pictures_of_the_graph_are_written_once_with_their_captions(folders: Path) -> None:
    import torch
    images = torch.rand(2, 32, 48, 3)
    folder = sources.write_images(images, "a red one\na blue one")
    assert folder == sources.write_images(images, "a red one\na blue one") != sources.write_images(images, "one for both")
    values, _, _, count, _ = sources.dataset("AprendizDatasetImages", str(folder), None, {})
    assert count == 2 and values["data"]["path"] == str(folder)
    assert (folder / "0001.txt").read_text(encoding="utf-8") == "a blue one"


BASES = [("old.safetensors", "sd1"), ("large.safetensors", "sdxl"), ("other.safetensors", "sd1")]


@pytest.mark.parametrize(("bases", "card", "side", "chosen"), [
    (BASES, 24.0, 1024, "large.safetensors"), (BASES, 24.0, 512, "old.safetensors"), (BASES, 8.0, 1024, "old.safetensors"),
    (BASES, 0.0, 1024, "micro"), ([], 24.0, 1024, "micro"), (BASES[1:2], 8.0, 1024, "micro")])
def test_a_folder_gets_the_best_base_that_the_card_holds_and_the_pictures_are_large_enough_for(
        bases: list[tuple[str, str]], card: float, side: int, chosen: str) -> None:
    assert ready.ready(ready.Pictures(20, 20, side, "vase"), bases, card)["base"]["path"] == chosen


@pytest.mark.parametrize("card", [0.0, 6.0, 12.0, 24.0])
@pytest.mark.parametrize("count", [1, 20, 5000])
def test_whatever_is_found_the_job_is_one_that_can_be_read(count: int, card: float) -> None:
    values = ready.ready(ready.Pictures(count, 0, 900, "Mi jarrón"), BASES, card)
    job = settings_module.Job.read({**values, "data": {**values["data"], "path": "pictures"}})
    assert job.data.trigger == "mi-jarron" and 400 <= job.training.steps <= 3000
    assert job.training.steps % job.training.save_every_steps < job.training.save_every_steps <= job.training.steps / 2


@pytest.mark.parametrize("name", ["..", "../input", "", "a/b", "/tmp", ".hidden", "nothing-there", 5, None])
def test_only_a_plain_name_below_the_input_folder_is_made_ready(name: object, folders: Path,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "host", sources.host)
    with pytest.raises(routes.Refused):
        routes.ready_for({"folder": name})


@pytest.mark.parametrize("case", ["no folder", "empty folder", "missing folder", "broken picture", "captions", "no lora",
                                  "no prompt", "uneven", "missing base", "broken base", "no embedding", "no control image"])
def test_bad_input_gets_one_clear_message_on_its_node(case: str, folders: Path, answers: Callable[[str, object], None]) -> None:
    import torch
    write_pictures(folders / "good", "fish", count=2)
    (folders / "empty").mkdir()
    shutil.copytree(folders / "good", folders / "broken")
    next((folders / "broken").glob("*.png")).write_bytes(b"no picture")
    (folders / "broken.safetensors").write_bytes(b"no weights")
    ask: dict[str, Callable[[], Any]] = {
        "no folder": lambda: sources.dataset("AprendizDatasetFolder", "", None, {}),
        "empty folder": lambda: sources.dataset("AprendizDatasetFolder", str(folders / "empty"), None, {}),
        "missing folder": lambda: sources.dataset("AprendizDatasetFolder", str(folders / "nowhere"), None, {}),
        "broken picture": lambda: sources.dataset("AprendizDatasetFolder", str(folders / "broken"), None, {}),
        "captions": lambda: sources.write_images(torch.rand(3, 8, 8, 3), "one\ntwo"),
        "no lora": lambda: draw.lora_file("nothing.safetensors"),
        "no prompt": lambda: draw.walk({"path": "micro"}, [], {"prompts": " \n"}, None),
        "uneven": lambda: draw.grid(torch.rand(1, 8, 8, 3), torch.rand(2, 8, 8, 3), "", ""),
        "missing base": lambda: sources.base_values({"base": "gone.safetensors"}),
        "no embedding": lambda: draw.called("a embedding:gone", {}),
        "no control image": lambda: draw._control(folders, {"control_net": "canny.safetensors"}, {}),
        "broken base": lambda: sources.base_values({"elsewhere": str(folders / "broken.safetensors")}),
    }
    with pytest.raises(errors.AprendizError) as told:
        ask[case]()
    assert str(told.value) and "Traceback" not in str(told.value)
    answers(f"ComfyUI: {case}", told.value)


@pytest.mark.parametrize(("prompt", "taken"), [
    ("a embedding:zwx on a table", "a zwx on a table"), ("(embedding:zwx:1.2), blue", "(zwx:1.2), blue"),
    ("embedding:zwx.safetensors", "zwx"), ("no word is called", "no word is called"), ("an embedding: two", "an embedding: two")])
def test_an_embedding_is_called_in_a_prompt_as_stock_nodes_call_it(prompt: str, taken: str, folders: Path,
                                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    file = folders / "zwx.safetensors"
    monkeypatch.setattr(draw.host, "find", lambda kind, name: file if (kind, name) == ("embeddings", file.name) else None)
    arguments = draw._common({"path": "micro"}, [], {"negative_prompt": prompt}, [prompt])
    assert [arguments[place + 1] for place, one in enumerate(arguments) if one in ("--prompt", "--negative")] == [taken, taken]
    assert arguments.count("--embedding") == (taken != prompt) and (str(file) in arguments) == (taken != prompt)


def test_a_control_net_goes_with_its_picture(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    monkeypatch.setattr(draw.host, "find", lambda kind, name: folders / kind / name)
    given = {"control_net": "canny.safetensors", "control_strength": 0.5, "control_start": 0.0, "control_end": 0.8}
    flags = draw._control(folders, given, {"control_image": torch.rand(1, 16, 16, 3)})
    assert flags == ["--controlnet", f"{folders / 'controlnet' / 'canny.safetensors'}:0.5", "--control",
                     str(folders / "control.png"), "--control-start", "0.0", "--control-end", "0.8"]
    assert draw._control(folders, {"control_net": ""}, {}) == [] and (folders / "control.png").is_file()


def test_a_grid_of_pairs_is_one_picture(folders: Path) -> None:
    import torch
    grid = draw.grid(torch.rand(2, 64, 64, 3), torch.rand(2, 64, 64, 3), "one\ntwo", "Before and after")
    assert grid.shape[0] == 1 and grid.shape[3] == 3 and grid.shape[2] >= 480


@pytest.mark.parametrize("suffix", ["webp", "gif"])
def test_equal_frames_of_a_walk_are_counted_each(suffix: str, tmp_path: Path) -> None:
    from PIL import Image

    from aprendiz import walk
    shown = [Image.new("RGB", (32, 32), colour) for colour in ("red", "red", "blue", "blue", "blue")]
    file = walk.save(shown, tmp_path / f"walk.{suffix}", 12.0)
    frames = draw.frames(file, 12.0)
    assert tuple(frames.shape) == (5, 32, 32, 3)
    assert [float(frame[16, 16, 0]) > 0.5 for frame in frames] == [True, True, False, False, False]
