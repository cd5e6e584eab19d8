"""A run's folder: what is being trained, how far it is, and how it is steered. The folder is the protocol.

    job.json        the resolved job            checkpoints/    resumable states
    events.jsonl    what the worker tells       samples/        pictures made while training
    commands.jsonl  what it is told             report/         before and after, curves, scores
    consumed        how much of that it read    <name>.safetensors with .json and .png: the result
    lock            held while a worker lives   log.txt         what libraries print, tracebacks

Any process may read it and append a command; the worker alone writes the rest. Standard library only: hosts import this.
"""

from __future__ import annotations

import json
import math
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any

from .errors import Problem, RunError
from .events import append, last_attempts, last_events, length, read_events
from .files import disk_errors, home, move_into_place, write_atomically, write_json
from .locks import PROBE, FileLock, devices_locked, is_locked
from .settings import Job, plain_name
from .worker.messages import ASIDE, COMMANDS, ENDS, EVENTS, LEASE, PROTOCOL

__all__ = ["Run", "Stopped", "default_name", "find_runs", "write_atomically"]


class Stopped(Exception):
    """The run was asked to stop, has saved, and can be resumed. No error."""


class Run:
    """One run's folder.

    attempt: 0 as created, then counting the workers that took it up. created: the folders that this very call of `create` made,
    the run's own first. listeners: called with every event this process writes. main: False in the helping processes of a launch
    with several, which neither write nor listen. paused_by: "host" where the last pause that was heard is a host's, else None.
    """

    def __init__(self, folder: Path, *, main: bool = True) -> None:
        self.folder = Path(folder)
        self.name = self.folder.name
        self.main = main
        self.created: list[Path] = []
        self.listeners: list[Callable[[dict[str, Any]], None]] = []
        self.last_event = ""
        self.paused_by: str | None = None
        self._attempt: int | None = None
        self._read_to: int | None = None
        self._lent = 0.0  # until when a host's pause holds, on the monotonic clock
        self._unheard: list[str] = []  # read while waiting for a device, which heeds `stop` alone

    @property
    def attempt(self) -> int:
        """The attempt that events belong to; read when it is first asked for, because lists of many runs never ask."""
        if self._attempt is None:
            last = last_events(self.events_file)
            self._attempt = last[-1].get("attempt", 0) if last else 0
        return self._attempt

    @attempt.setter
    def attempt(self, number: int) -> None:
        self._attempt = number

    # Making and finding

    @classmethod
    def create(cls, output: Path, job: Job, dataset_digest: str) -> Run:
        """The run for this job: the one there is, if it is the very same job (not done, or not wanted `again`), else a new one.

        A different job under a used name becomes name-2, name-3. Nothing there is ever overwritten. Raises RunError.
        """
        identity = job.hash(dataset_digest)
        root = Path(output).absolute() / "aprendiz"
        wanted = job.output.name or default_name(job)
        while True:
            found, free = _same_job(root, wanted, identity, job.output.again)
            if found is not None:
                return found
            made = _make_folder(root / free, job, identity, dataset_digest)
            if made is not None:
                run = cls(root / free)
                run.created = [run.folder, *made]
                _remember(Path(output).absolute())
                return run

    @classmethod
    def open(cls, folder: Path, *, main: bool = True) -> Run:
        """The run in a folder. Raises RunError where there is none."""
        folder = Path(folder).absolute()
        if not (folder / "job.json").is_file():
            raise RunError("{folder} is not the folder of a run. `python -m aprendiz runs` lists the runs there are.",
                           folder=str(folder))
        return cls(folder, main=main)

    def discard(self) -> None:
        """Remove the folder, and the empty folders above that were made for it: nothing was learned, nothing is to stay."""
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self.created:
            with suppress(OSError):
                folder.rmdir()

    # What there is

    @property
    def file(self) -> Path:
        """The result."""
        return self.folder / f"{self.name}.safetensors"

    @property
    def samples(self) -> Path:
        """The folder of pictures made while training."""
        return self.folder / "samples"

    @property
    def checkpoints(self) -> Path:
        """The folder of resumable states."""
        return self.folder / "checkpoints"

    @property
    def report(self) -> Path:
        """The folder of the report."""
        return self.folder / "report"

    @property
    def cache(self) -> Path:
        """Encoded pictures and captions, shared by the runs of an output folder."""
        return self.folder.parent / ".cache"

    @property
    def log(self) -> Path:
        """What libraries print, and tracebacks."""
        return self.folder / "log.txt"

    @property
    def events_file(self) -> Path:
        """What its workers told, a line of JSON for each event."""
        return self.folder / "events.jsonl"

    @property
    def first_event(self) -> dict[str, Any]:
        """The event that the run was made with: its job's hash (job), its pictures' (dataset), the time. {} where it is gone."""
        try:
            with open(self.events_file, encoding="utf-8") as file:
                first = json.loads(file.readline())
        except (OSError, ValueError):
            return {}
        return first if isinstance(first, dict) else {}

    @property
    def _commands(self) -> Path:
        return self.folder / "commands.jsonl"

    def values(self) -> dict[str, Any]:
        """The job as plain values. Raises RunError where job.json is gone or broken."""
        try:
            values: dict[str, Any] = json.loads((self.folder / "job.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise RunError("{file} cannot be read, so this run cannot go on. Start its job anew.",
                           file=str(self.folder / "job.json")) from error
        return values

    def job(self) -> Job:
        """The resolved job; its name is the run's."""
        return Job.read(self.values())

    # Events

    def event(self, kind: str, **fields: Any) -> None:
        """Append one event. Paths inside the folder become relative to it, numbers that are none become null. Raises RunError."""
        if kind not in EVENTS:
            raise ValueError(f"there is no event {kind!r}; worker/messages.py lists them")
        if not self.main:
            return
        line = {"v": PROTOCOL, "attempt": self.attempt, "time": _now(), "event": kind, **self._plain(fields)}
        with disk_errors(self.events_file):
            append(self.events_file, line)
        self.last_event = kind
        for listen in self.listeners:
            listen(line)

    def say(self, template: str, *, warning: bool = False, **fields: Any) -> None:
        """Tell people something while training: a `message` or `warning` event from an English template with named fields."""
        shown = self._plain(fields)
        self.event("warning" if warning else "message", template=template, fields=shown, text=template.format(**shown))

    def events(self) -> list[dict[str, Any]]:
        """All events in order; of steps that a resumed run repeated only the last attempt's. A torn last line is ignored."""
        return last_attempts(read_events(self.events_file)[0])

    @property
    def state(self) -> str:
        """queued, running, paused, stopped, finished, failed, or dead: its worker ended without a word."""
        last = last_events(self.events_file)
        if not last or last[-1]["attempt"] == 0:
            return "running" if self.is_locked else "queued"
        kinds = [event["event"] for event in last if event["attempt"] == last[-1]["attempt"]]
        kind = next((kind for kind in reversed(kinds) if kind not in ASIDE), "ready")
        if kind in ENDS:
            return kind
        if not self.is_locked:
            return "dead"
        return kind if kind in ("queued", "paused") else "running"

    def _plain(self, value: Any) -> Any:
        """A value as JSON has it."""
        if isinstance(value, dict):
            return {str(key): self._plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self._plain(item) for item in value]
        if isinstance(value, Problem):
            return {"template": value.template, "fields": self._plain(value.fields), "where": value.where,
                    "warning": value.warning, "text": value.english}
        if isinstance(value, PurePath):
            inside = value.is_absolute() and value.is_relative_to(self.folder)
            return (value.relative_to(self.folder) if inside else value).as_posix()
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        return value if value is None or isinstance(value, (bool, int, str)) else str(value)

    # Commands

    def tell(self, command: str, by: str | None = None) -> None:
        """Steer the run, from any process: pause, resume, stop, save, sample. Raises RunError.

        by: "host" for a pause that is not a person's wish, and ends by itself where it is not asked for anew within `LEASE`.
        """
        if command not in COMMANDS:
            raise RunError("There is no command '{command}'. There are: {choices}.", command=command, choices=", ".join(COMMANDS))
        with disk_errors(self._commands):
            append(self._commands, {"v": PROTOCOL, "id": secrets.token_hex(8), "time": _now(), "command": command,
                                     **({"by": by} if by else {})})

    def commands(self) -> list[str]:
        """Commands since the last call, in this process or an earlier one: each is handed out once. Costs a look at the disk.

        A host's pause that has run out comes as `resume`.
        """
        start = self._consumed()
        size = length(self._commands)
        heard, self._unheard = self._unheard, []
        if not self.main or size == start:
            return heard + self._run_out()
        lines, self._read_to = read_events(self._commands, min(start, size))
        # Noted before they are acted on: a command is rather lost in a crash than done twice.
        write_atomically(self.folder / "consumed", str(self._read_to).encode())
        told = [line for line in lines if line.get("command") in COMMANDS]
        for line in told:
            if line["command"] in ("pause", "resume"):
                self.paused_by = line.get("by")
                self._lent = time.monotonic() + LEASE
        return heard + [line["command"] for line in told]

    def _run_out(self) -> list[str]:
        """That a host's pause has run out, once."""
        if self.paused_by is None or time.monotonic() < self._lent:
            return []
        self.paused_by = None
        return ["resume"]

    def forget_commands(self) -> None:
        """Drop what was said to earlier workers. Called by whoever is about to start one."""
        self._read_to = length(self._commands)
        write_atomically(self.folder / "consumed", str(self._read_to).encode())

    def _consumed(self) -> int:
        if self._read_to is None:
            try:
                self._read_to = int((self.folder / "consumed").read_text(encoding="utf-8"))
            except (OSError, ValueError):
                self._read_to = 0
        return self._read_to

    # Locks

    @property
    def is_locked(self) -> bool:
        """Whether a worker lives."""
        return is_locked(self.folder / "lock")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Be the run's worker: hold its lock and begin an attempt with the event `queued`. Raises RunError if another does."""
        if not self.main:
            yield
            return
        lock = FileLock(self.folder / "lock")
        with disk_errors(lock.file):
            taken = lock.take(PROBE)
        if not taken:
            raise RunError("{name} is being trained by another process. Follow it with: python -m aprendiz watch {folder}",
                           name=self.name, folder=str(self.folder))
        try:
            last = last_events(self.events_file)
            self.attempt = (last[-1]["attempt"] if last else 0) + 1
            self.event("queued")
            yield
        finally:
            lock.release()

    @contextmanager
    def on_devices(self, devices: Sequence[str]) -> Iterator[None]:
        """Hold devices (`cpu`, `cuda:0`), waiting for other runs on them. Raises Stopped when told to stop meanwhile."""
        told = 0

        def waiting(ahead: int) -> None:
            nonlocal told
            if ahead != told:
                told = ahead
                self.event("queued", device=", ".join(devices), ahead=ahead)
            self._unheard = self.commands()
            if "stop" in self._unheard:
                self.event("stopped", step=self.step)
                raise Stopped(self.name)

        if not self.main:
            yield
            return
        with devices_locked(devices, waiting, str(self.folder)):
            yield

    @property
    def step(self) -> int:
        """Optimizer steps that are saved: those of the newest resumable state, 0 where there is none."""
        steps = [int(folder.name[5:]) for folder in self.checkpoints.glob("step-*") if folder.name[5:].isdigit()]
        return max(steps, default=0)


def default_name(job: Job) -> str:
    """A name that says what is taught, free of spaces: 'mara-lora'. From the trigger, else the folder of pictures."""
    for words in (job.data.trigger, Path(job.data.path).name if job.data.path else None, job.data.class_word):
        plain = plain_name(words or "")
        if plain:
            return f"{plain}-{job.method_name.replace('_', '-')}"
    return job.method_name.replace("_", "-")


def find_run(words: str) -> Run:
    """A run by its folder, or by its name where one run alone has it. Raises RunError."""
    folder = Path(words).expanduser()
    if not (folder / "job.json").is_file() and len(folder.parts) == 1:
        named = [run.folder for run in find_runs() if run.name == words]
        if len(named) > 1:
            raise RunError("Several runs are called {name}. Name the folder of one: {folders}.", name=words,
                           folders=", ".join(map(str, named)))
        folder = named[0] if named else folder
    return Run.open(folder)


def find_runs(output: Path | None = None) -> list[Run]:
    """Runs in an output folder (or in all that were ever used), those changed last first. Raises RunError without a folder."""
    if output is not None:
        output = Path(output).absolute()
        if not output.is_dir():
            raise RunError("There is no folder {folder}. Check the path.", folder=str(output))
    roots = [output] if output is not None else [Path(folder) for folder in _outputs()]
    patterns = ("job.json", "*/job.json", "aprendiz/*/job.json")
    folders = {file.parent for root in roots for pattern in patterns for file in root.glob(pattern)}
    runs = [Run(folder) for folder in folders if (folder / "events.jsonl").is_file() and not folder.name.startswith(".")]
    return sorted(runs, key=lambda run: _changed(run.events_file), reverse=True)


def _now() -> float:
    return round(time.time(), 3)


def _changed(file: Path) -> float:
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def _same_job(root: Path, wanted: str, identity: str, again: bool) -> tuple[Run | None, str]:
    """The run of this very job to go on with or to answer with, if there is one; and the first free name."""
    finished = None
    name, number = wanted, 1
    while (root / name).exists():
        run = Run(root / name)
        if run.first_event.get("job") == identity:
            if run.state != "finished":
                return run, name
            finished = run
        number += 1
        name = f"{wanted}-{number}"
    return (None if again else finished), name


def _make_folder(folder: Path, job: Job, identity: str, dataset: str) -> list[Path] | None:
    """Make a run's folder, all of it at once; the folders above that had to be made. None if another took the name meanwhile."""
    missing = [parent for parent in folder.parents if not parent.exists()]
    building = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.tmp")
    with disk_errors(folder):
        try:
            building.mkdir(parents=True)
            write_json(building / "job.json", job.with_values(output={"name": folder.name}).values())
            Run(building).event("queued", job=identity, dataset=dataset)
            move_into_place(building, folder)
            return missing
        except BaseException as error:
            shutil.rmtree(building, ignore_errors=True)
            if isinstance(error, OSError) and folder.exists():
                return None
            for parent in missing:
                with suppress(OSError):
                    parent.rmdir()
            raise


def _outputs() -> list[str]:
    """The output folders that were ever used."""
    try:
        listed = json.loads((home() / "outputs.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    return [folder for folder in listed if isinstance(folder, str)] if isinstance(listed, list) else []


def _remember(output: Path) -> None:
    """Add an output folder to the list, so that `runs` finds what is in it."""
    with disk_errors(home() / "outputs.json"):
        home().mkdir(parents=True, exist_ok=True)
        lock = FileLock(home() / "outputs.lock")
        lock.take(PROBE)
        try:
            listed = _outputs()
            if str(output) not in listed:
                write_json(home() / "outputs.json", [*listed, str(output)])
        finally:
            lock.release()
