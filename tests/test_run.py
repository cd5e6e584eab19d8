"""A run's folder: names, events, commands, locks, and what happens where a disk or a process fails."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from aprendiz import files
from aprendiz.errors import Problem, RunError
from aprendiz.events import read_events
from aprendiz.files import home, write_atomically
from aprendiz.locks import FileLock, devices_locked, is_locked
from aprendiz.run import Run, Stopped, default_name, find_run, find_runs
from aprendiz.settings import Job
from aprendiz.worker.messages import LEASE

ROOT = Path(__file__).resolve().parent.parent
HOLD = "import sys, time; sys.path.append({root!r}); from pathlib import Path; from aprendiz.locks import FileLock; " \
       "lock = FileLock(Path({file!r})); assert lock.take(); print('held', flush=True); time.sleep(60)"


@pytest.fixture(autouse=True)
def own_home(user_folder: Path) -> None:
    """Every test has its own list of output folders and devices."""


def job(data: str = "mara", **changes: object) -> Job:
    return Job.read({"data": data, "steps": 5, **changes})


def finish(run: Run) -> None:
    with run.locked():
        run.file.write_bytes(b"learned")
        run.event("finished", step=5, file=run.file)


@contextmanager
def held_elsewhere(file: Path) -> Iterator[None]:
    """Another process holds a lock, until it is killed."""
    command = [sys.executable, "-c", HOLD.format(root=str(ROOT), file=str(file))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        try:
            yield
        finally:
            process.kill()


# Names


def test_the_same_job_unfinished_is_taken_up_again(tmp_path: Path) -> None:
    first = Run.create(tmp_path, job(), "digest")
    second = Run.create(tmp_path, job(), "digest")
    assert second.folder == first.folder == tmp_path / "aprendiz" / "mara-lora"
    assert first.created and not second.created


def test_the_same_job_finished_answers_with_its_run_unless_again(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "digest")
    finish(run)
    assert Run.create(tmp_path, job(), "digest").folder == run.folder
    assert Run.create(tmp_path, job(again=True), "digest").name == "mara-lora-2"
    # The second training was not done: asked for once more, it goes on.
    assert Run.create(tmp_path, job(again=True), "digest").name == "mara-lora-2"
    assert run.file.read_bytes() == b"learned"


def test_a_different_job_or_other_pictures_under_a_used_name_get_the_next(tmp_path: Path) -> None:
    names = [Run.create(tmp_path, job(name="face"), "a").name, Run.create(tmp_path, job(name="face", steps=6), "a").name,
             Run.create(tmp_path, job(name="face"), "b").name, Run.create(tmp_path, job(name="face"), "a").name]
    assert names == ["face", "face-2", "face-3", "face"]


def test_the_job_in_the_folder_has_the_name_that_was_given_to_the_run(tmp_path: Path) -> None:
    Run.create(tmp_path, job(name="face"), "a")
    run = Run.create(tmp_path, job(name="face", steps=6), "a")
    assert run.job().output.name == run.name == "face-2" == run.file.stem
    assert run.job().training.steps == 6


@pytest.mark.parametrize(("values", "name"), [
    ({"data": "/pictures/My Cat", "trigger": None}, "my-cat-lora"),
    ({"data": "/pictures/My Cat", "trigger": "sks Café"}, "sks-cafe-lora"),
    ({"data": "/pictures/狐", "trigger": "狐", "class_word": "fox"}, "fox-lora"),
    ({"data": "/pictures/狐", "trigger": "狐"}, "lora"),
])
def test_a_default_name_says_what_is_taught_without_spaces(values: dict[str, object], name: str) -> None:
    assert default_name(Job.read({**values, "steps": 5})) == name


def test_a_name_that_a_file_has_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "aprendiz").mkdir()
    (tmp_path / "aprendiz" / "face").write_text("mine", encoding="utf-8")
    assert Run.create(tmp_path, job(name="face"), "a").name == "face-2"
    assert (tmp_path / "aprendiz" / "face").read_text(encoding="utf-8") == "mine"


def test_runs_are_found_through_the_list_of_output_folders(tmp_path: Path) -> None:
    one = Run.create(tmp_path / "one", job(), "a")
    two = Run.create(tmp_path / "two", job(), "a")
    assert {run.folder for run in find_runs()} == {one.folder, two.folder}
    assert [run.folder for run in find_runs(tmp_path / "one")] == [one.folder]
    assert [run.folder for run in find_runs(two.folder)] == [two.folder]


def test_discarding_a_run_removes_the_folders_made_for_it_and_no_other(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "deep" / "out", job(), "a")
    run.discard()
    assert list(tmp_path.glob("deep/*")) == [] and not (tmp_path / "deep").exists() and tmp_path.exists()


def test_a_run_beside_others_counts_as_created_and_is_discarded_alone(tmp_path: Path) -> None:
    kept = Run.create(tmp_path, job(), "a")
    run = Run.create(tmp_path, job(), "b")
    assert run.created and run.folder != kept.folder
    run.discard()
    assert kept.folder.exists() and not run.folder.exists()


# Events


def test_an_event_is_a_line_with_version_attempt_and_time(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    with run.locked():
        run.event("step", step=1, loss=float("nan"))
        run.event("checkpoint", step=1, folder=run.checkpoints / "step-000001")
    lines = [json.loads(line) for line in (run.folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["v"], line["attempt"], line["event"]) for line in lines] == [
        (1, 0, "queued"), (1, 1, "queued"), (1, 1, "step"), (1, 1, "checkpoint")]
    assert abs(lines[2]["time"] - time.time()) < 60
    assert lines[2]["loss"] is None
    assert lines[3]["folder"] == "checkpoints/step-000001"


def test_readers_keep_the_last_attempt_of_repeated_steps(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    with run.locked():
        for step in range(1, 6):
            run.event("step", step=step, loss=1.0)
        run.event("sample", step=5, file="old.png")
    with run.locked():
        run.event("resumed", step=3)
        run.event("step", step=4, loss=2.0)
    steps = [(event["step"], event["loss"]) for event in run.events() if event["event"] == "step"]
    assert steps == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0)]
    assert not [event for event in run.events() if event["event"] == "sample"]


def test_a_torn_last_line_is_ignored_and_the_next_event_stands_on_its_own(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    with run.locked():
        run.event("step", step=1, loss=1.0)
    with open(run.folder / "events.jsonl", "ab") as file:
        file.write(b'{"v":1,"attempt":1,"event":"st')
    assert [event["event"] for event in run.events()] == ["queued", "queued", "step"]
    assert run.state == "dead"
    with run.locked():
        run.event("step", step=2, loss=1.0)
    assert [event.get("step") for event in run.events() if event["event"] == "step"] == [1, 2]


def test_events_can_be_read_on_from_an_offset(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    first, offset = read_events(run.folder / "events.jsonl")
    assert [event["event"] for event in first] == ["queued"]
    run.event("message", template="hello", fields={}, text="hello")
    again, after = read_events(run.folder / "events.jsonl", offset)
    assert [event["event"] for event in again] == ["message"]
    assert read_events(run.folder / "events.jsonl", after) == ([], after)


def test_an_unknown_event_is_our_bug(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="stepp"):
        Run.create(tmp_path, job(), "a").event("stepp")


def test_the_state_follows_from_events_and_lock(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    seen = [run.state]
    with run.locked():
        for event in ("ready", "paused", "message", "resumed"):
            run.event(event, step=0)
            seen.append(Run.open(run.folder).state)
    seen.append(run.state)
    for end in ("stopped", "failed", "finished"):
        with run.locked():
            seen.append(run.state)
            run.event(end)
        seen.append(run.state)
    assert seen == ["queued", "running", "paused", "paused", "running", "dead",
                    "queued", "stopped", "queued", "failed", "queued", "finished"]
    assert Run.open(run.folder).attempt == 4


def test_a_run_that_failed_of_many_problems_has_failed(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    with run.locked():
        run.event("failed", problems=[Problem("{file} is broken.", {"file": "picture" * 40}, f"{i}.png") for i in range(250)])
    assert (run.folder / "events.jsonl").stat().st_size > 1 << 17
    assert run.state == "failed"
    assert Run.open(run.folder).attempt == 1


# Commands


def test_every_command_is_handed_out_once_also_to_a_later_process(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    run.tell("save")
    run.tell("stop")
    assert run.commands() == ["save", "stop"]
    assert run.commands() == []
    assert Run.open(run.folder).commands() == []
    Run.open(run.folder).tell("pause")
    assert run.commands() == ["pause"]


def test_an_old_stop_does_not_stop_the_next_attempt(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    run.tell("stop")
    Run.open(run.folder).forget_commands()
    assert run.commands() == []


def test_a_torn_command_is_read_when_it_is_whole(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    run.tell("save")
    whole = (run.folder / "commands.jsonl").read_bytes()
    (run.folder / "commands.jsonl").write_bytes(whole[:-5])
    assert run.commands() == []
    (run.folder / "commands.jsonl").write_bytes(whole)
    assert run.commands() == ["save"]


def test_a_command_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="There is no command 'halt'. There are: pause, resume, stop, save, sample."):
        Run.create(tmp_path, job(), "a").tell("halt")


def test_helping_processes_neither_write_nor_listen(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    run.tell("stop")
    helper = Run.open(run.folder, main=False)
    with helper.locked(), helper.on_devices(["cpu"]):
        helper.event("step", step=1)
        assert helper.commands() == []
    assert [event["event"] for event in run.events()] == ["queued"]
    assert run.commands() == ["stop"]


# Locks


def test_a_run_has_one_worker(tmp_path: Path) -> None:
    run = Run.create(tmp_path, job(), "a")
    with run.locked(), pytest.raises(RunError, match="is being trained by another process"), Run.open(run.folder).locked():
        pytest.fail("two workers held the lock")
    assert not run.is_locked


def test_a_lock_ends_with_its_process(tmp_path: Path) -> None:
    with held_elsewhere(tmp_path / "lock"):
        assert is_locked(tmp_path / "lock")
    assert FileLock(tmp_path / "lock").take(5)


def test_a_second_run_on_a_device_waits_as_queued_and_can_be_stopped(tmp_path: Path) -> None:
    folder = home() / "devices" / "cpu"
    folder.mkdir(parents=True)
    run = Run.create(tmp_path, job(), "a")
    run.tell("stop")
    with held_elsewhere(folder / "lock"), run.locked():
        with pytest.raises(Stopped), run.on_devices(["cpu"]):
            pytest.fail("the device was held by another process")
        assert Run.open(run.folder).state == "stopped"
    told = [(event["event"], event.get("device"), event.get("ahead")) for event in run.events()]
    assert told[2:] == [("queued", "cpu", 1), ("stopped", None, None)]
    with run.on_devices(["cpu"]):
        assert is_locked(folder / "lock")
    assert list(folder.glob("*.ticket")) == []


def test_what_is_told_to_a_run_that_waits_for_its_device_is_heard_once_it_begins(tmp_path: Path) -> None:
    folder = home() / "devices" / "cpu"
    folder.mkdir(parents=True)
    run = Run.create(tmp_path, job(), "a")
    run.tell("pause")
    run.tell("sample")
    with ExitStack() as other:
        other.enter_context(held_elsewhere(folder / "lock"))
        run.listeners.append(lambda event: other.close() if event.get("ahead") else None)
        with run.locked(), run.on_devices(["cpu"]):
            run.tell("resume")
            assert run.commands() == ["pause", "sample", "resume"] and run.commands() == []


def test_waiting_runs_take_a_device_in_the_order_in_which_they_came() -> None:
    seen: list[int] = []

    class Enough(Exception):
        pass

    def waiting(ahead: int) -> None:
        seen.append(ahead)
        raise Enough

    folder = home() / "devices" / "cuda-0"
    folder.mkdir(parents=True)
    earlier, dead = FileLock(folder / "00000000000000000001-a.ticket"), folder / "00000000000000000002-b.ticket"
    assert earlier.take()
    dead.touch()
    with pytest.raises(Enough), devices_locked(["cuda:0"], waiting):
        pytest.fail("an earlier run was waiting")
    earlier.release()
    with devices_locked(["cuda:0"], waiting):
        pass
    assert seen == [1] and not dead.exists()


# Disks


def test_a_file_written_atomically_is_whole_or_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "folder" / "state"
    file.parent.mkdir()
    write_atomically(file, b"old")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="The disk is full, so .*state could not be written"):
        write_atomically(file, b"new")
    assert file.read_bytes() == b"old" and list(file.parent.iterdir()) == [file]


def test_a_rename_is_tried_again_while_somebody_holds_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []
    replace = os.replace

    def held_twice(source: Path, target: Path) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "The process cannot access the file")
        replace(source, target)

    monkeypatch.setattr(os, "replace", held_twice)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new" and len(tries) == 3


def test_a_runs_folder_is_made_where_somebody_holds_it_for_a_moment(tmp_path: Path, held: None) -> None:
    run = Run.create(tmp_path, job(), "a")
    assert run.name == "mara-lora" and run.state == "queued"


def test_a_folder_is_not_waited_for_where_another_is_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(source: Path, target: Path) -> None:  # as Windows does, which replaces no folder
        raise PermissionError(errno.EACCES, "Access is denied")

    def waited(seconds: float) -> None:
        raise AssertionError("it was waited for")

    monkeypatch.setattr(os, "replace", refused)
    monkeypatch.setattr(files.time, "sleep", waited)
    (tmp_path / "there").mkdir()
    with pytest.raises(PermissionError):
        files.move_into_place(tmp_path / "new", tmp_path / "there")


@pytest.mark.skipif(sys.platform == "win32", reason="a umask is POSIX's")
def test_files_have_normal_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_atomically(tmp_path / "file", b"")
    finally:
        os.umask(mask)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full by itself is Linux's")
def test_a_disk_that_fills_up_mid_run_is_told_in_one_sentence(tmp_path: Path, answers: Callable[[str, object], None]) -> None:
    run = Run.create(tmp_path, job(), "a")
    run.attempt = 1  # known, so that nobody reads what follows: it has no end
    (run.folder / "events.jsonl").unlink()
    (run.folder / "events.jsonl").symlink_to("/dev/full")
    with pytest.raises(RunError, match="The disk is full") as told:
        run.event("step", step=1)
    answers("a disk that fills up mid-run", str(told.value).replace(str(tmp_path), "OUT"))


def test_an_output_folder_that_cannot_be_written_is_told_and_nothing_is_left(
        tmp_path: Path, answers: Callable[[str, object], None]) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(RunError, match="cannot be written") as told:
        Run.create(tmp_path / "file" / "out", job(), "a")
    answers("an output folder that is inside a file", str(told.value).replace(str(tmp_path), "OUT"))
    assert [file.name for file in tmp_path.iterdir() if file.name != "user"] == ["file"]


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not the folder of a run"):
        Run.open(tmp_path)


def test_a_hosts_pause_runs_out_and_a_persons_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("aprendiz.run.time.monotonic", lambda: now[0])
    run = Run.create(tmp_path, job(), "digest")
    run.tell("pause", by="host")
    assert (run.commands(), run.paused_by) == (["pause"], "host")
    now[0] += LEASE - 1
    run.tell("pause", by="host")  # asked for again
    assert run.commands() == ["pause"]
    now[0] += LEASE - 1
    assert run.commands() == []
    now[0] += 2
    assert (run.commands(), run.commands(), run.paused_by) == (["resume"], [], None)
    run.tell("pause")
    assert (run.commands(), run.paused_by) == (["pause"], None)
    now[0] += 2 * LEASE
    assert run.commands() == []


def test_a_run_is_found_by_its_name_where_one_alone_has_it(tmp_path: Path) -> None:
    one = Run.create(tmp_path / "one", job(), "digest")
    assert find_run(one.name).folder == find_run(str(one.folder)).folder == one.folder
    with pytest.raises(RunError, match="is not the folder of a run"):
        find_run("nobody")
    Run.create(tmp_path / "two", job(), "digest")
    with pytest.raises(RunError, match=f"Several runs are called {one.name}"):
        find_run(one.name)
    assert find_run(str(one.folder)).folder == one.folder
