"""The worker, as hosts start it: by path, followed by its events, ended with the host or not, and never dead without a word."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from aprendiz.errors import RunError
from aprendiz.micro.pictures import write_pictures
from aprendiz.run import Run
from aprendiz.settings import Job
from aprendiz.worker import client, messages
from aprendiz.worker.client import follow, last_words, start

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 240.0  # seconds; nothing here is timed, a worker that hangs is not to hang the suite
HOST = """
import sys, time
sys.path.append({root!r})
from pathlib import Path
from aprendiz.run import Run
from aprendiz.worker.client import start
for folder, keep in {runs!r}:
    run = Run.open(Path(folder))
    worker = start(run, keep_running=keep)
    while len(run.events()) < 3 and worker.alive:  # it has the device, or waits for it
        time.sleep(0.05)
print("started", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_home(user_folder: Path) -> None:
    """Every test has its own devices."""


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "fish", "fish", count=2)
    return tmp_path / "fish"


def small_job(pictures: Path, steps: int, **changes: Any) -> Job:
    """A real training on the embedded base, as small as it can be."""
    return Job.read({"data": {"path": str(pictures), "resolution": 64}, "method": {"rank": 1, "targets": "attention"},
                     "steps": steps, "device": "cpu", "sample_prompts": ["a fish"], "sampler_steps": 1, **changes})


def until(run: Run, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait for an event."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for event in run.events():
            if wanted(event):
                return event
        time.sleep(0.1)
    raise AssertionError((run.events()[-3:], run.log.read_text(encoding="utf-8")[-2000:]))


def until_unlocked(run: Run) -> None:
    end = time.monotonic() + PATIENCE
    while run.is_locked:
        assert time.monotonic() < end
        time.sleep(0.1)


def is_event(kind: str, **fields: Any) -> Callable[[dict[str, Any]], bool]:
    return lambda event: event["event"] == kind and all(event.get(name) == value for name, value in fields.items())


def test_an_isolated_python_trains_a_run_by_path_and_tells_all_of_it(tmp_path: Path, pictures: Path) -> None:
    run = Run.create(tmp_path, small_job(pictures, 2), "digest")
    done = subprocess.run([sys.executable, "-I", str(client.PROGRAM), str(run.folder)], cwd=tmp_path, capture_output=True,
                          stdin=subprocess.DEVNULL, timeout=PATIENCE, check=False)
    assert done.returncode == 0, run.log.read_text(encoding="utf-8")
    assert done.stdout == done.stderr == b""
    events = list(follow(run))
    kinds = [event["event"] for event in events]
    assert kinds[:3] == ["queued", "queued", "ready"] and kinds[-1] == "finished"
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2]
    for event in events:
        assert event["v"] == messages.PROTOCOL
        assert set(event) <= {*messages.COMMON, *messages.EVENTS[event["event"]]}, event
    assert run.file.is_file() and run.state == "finished" and not run.is_locked
    assert events[-1]["file"] == run.file.name


def test_when_the_host_is_killed_its_worker_saves_and_ends_and_a_kept_one_waits_its_turn_and_lives(
        tmp_path: Path, pictures: Path) -> None:
    tied = Run.create(tmp_path, small_job(pictures, 100_000, name="tied"), "digest")
    kept = Run.create(tmp_path, small_job(pictures, 100_000, name="kept"), "digest")
    script = HOST.format(root=str(ROOT), runs=[(str(tied.folder), False), (str(kept.folder), True)])
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as host:
        assert host.stdout is not None and host.stdout.readline() == "started\n"
        until(tied, is_event("step"))
        # Two workers, one device: the second waits and says so.
        until(kept, is_event("queued", device="cpu", ahead=1))
        assert kept.state == "queued" and tied.state == "running"
        host.kill()
    until(tied, is_event("stopped"))
    until_unlocked(tied)
    assert tied.state == "stopped" and tied.step > 0 and list(tied.folder.glob("tied-*.safetensors"))
    until(kept, is_event("step"))
    assert kept.state == "running"
    kept.tell("stop")
    until(kept, is_event("stopped"))
    until_unlocked(kept)


def test_a_worker_that_is_killed_is_reported_with_the_likely_reason(tmp_path: Path, pictures: Path) -> None:
    run = Run.create(tmp_path, small_job(pictures, 5), "digest")
    worker = start(run)
    until(run, is_event("queued", attempt=1))
    worker.process.kill()
    last = list(follow(worker))[-1]
    assert last["event"] == "failed" and last["dead"] is True and run.state == "dead"
    text = last["problems"][0]["text"]
    assert f"python -m aprendiz resume {run.folder}" in text
    if sys.platform != "win32":
        assert "most often because memory ran out" in text and worker.process.returncode == -signal.SIGKILL
    assert worker.process.stdin is not None
    worker.let_go()


def test_a_missing_package_is_named_with_the_remedy(
        tmp_path: Path, pictures: Path, answers: Callable[[str, object], None]) -> None:
    run = Run.create(tmp_path, small_job(pictures, 5), "digest")
    # -S leaves site-packages out: a Python with nothing installed.
    done = subprocess.run([sys.executable, "-I", "-S", str(client.PROGRAM), str(run.folder)], stdin=subprocess.DEVNULL,
                          check=False, capture_output=True, timeout=PATIENCE)
    assert done.returncode == 1
    last = run.events()[-1]
    assert last["event"] == "failed" and last["bug"] is False
    assert "The package torch is missing or broken" in last["problems"][0]["text"]
    assert "-m pip install torch" in last["problems"][0]["text"]
    answers("a Python without torch", last["problems"][0]["text"].replace(sys.executable, "PYTHON"))


def test_a_python_that_is_not_there_is_told(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.create(tmp_path, small_job(pictures, 5), "digest")
    monkeypatch.setenv("APRENDIZ_PYTHON", str(tmp_path / "no-python"))
    with pytest.raises(RunError, match="The Python for the worker could not be started: .*no-python.*Set APRENDIZ_PYTHON"):
        start(run)


def test_a_run_that_is_being_trained_is_not_started_twice(tmp_path: Path, pictures: Path) -> None:
    run = Run.create(tmp_path, small_job(pictures, 5), "digest")
    with run.locked(), pytest.raises(RunError, match="is being trained by another process"):
        start(run)


@pytest.mark.parametrize(("log", "remedy"), [
    ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB", "the card's memory ran out"),
    ("RuntimeError: [enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory", "the computer's memory ran out"),
    ("OSError: [WinError 1455] The paging file is too small for this operation to complete", "the computer's memory ran out"),
    ("RuntimeError: The NVIDIA driver on your system is too old (found version 11040)", "Update the driver"),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "Update the driver"),
    ("RuntimeError: CUDA error: an illegal memory access was encountered", "the graphics driver failed"),
    ("RuntimeError: operator torchvision::nms does not exist", "torchvision was made for another torch"),
    ("ModuleNotFoundError: No module named 'diffusers'", "the package diffusers is missing"),
    ("OSError: [WinError 126] DLL load failed while importing _C", "Microsoft Visual C++ Redistributable"),
    ("SafetensorError: IoError(Os { code: 28, kind: StorageFull })", "the disk is full"),
    ("Segmentation fault", "the last lines of its log: Loading / Segmentation fault"),
])
def test_last_words_of_a_known_kind_come_with_their_remedy(tmp_path: Path, pictures: Path, log: str, remedy: str) -> None:
    run = Run.create(tmp_path, small_job(pictures, 5), "digest")
    run.log.write_text(f"CUDA out of memory, long ago\n{messages.LOG_HEAD} 2026-01-01\nLoading\n{log}\n", encoding="utf-8")
    assert remedy in last_words(run, 1).english


def test_the_page_of_the_protocol_tells_every_event_field_and_command() -> None:
    page = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    for kind, fields in messages.EVENTS.items():
        assert f"| `{kind}` |" in page
        for name, meaning in fields.items():
            assert f"`{name}`: {meaning}" in page, (kind, name)
    for name, meaning in {**messages.COMMANDS, **messages.COMMON}.items():
        assert f"| `{name}` | {meaning} |" in page
    assert f"version {messages.PROTOCOL}" in page


def test_hosts_can_read_a_run_with_nothing_installed(tmp_path: Path, pictures: Path) -> None:
    run = Run.create(tmp_path, small_job(pictures, 5), "digest")
    script = (f"import sys; sys.path.append({str(ROOT)!r}); from pathlib import Path; from aprendiz.run import Run; "
              f"from aprendiz.worker import client; run = Run.open(Path({str(run.folder)!r})); "
              "print(run.state, run.job().training.steps); assert not {'torch', 'numpy', 'PIL', 'tomllib'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-I", "-S", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "queued 5\n"
    assert json.loads((run.folder / "job.json").read_text(encoding="utf-8"))["training"]["steps"] == 5
