"""The desk of a door with a page: starts runs, goes on with them, lists, checks and removes them, in the folders it may open.

One desk lives as long as its host's process, because it holds the lifelines of the workers it started. Standard library only
at module level: hosts import this.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import AprendizError, Problem, ProblemsError, RunError
from ..files import disk_errors, move_into_place
from ..knobs import knobs, read
from ..run import Run, default_name, find_runs
from ..settings import NAME, DataSettings, Job, unfold
from ..worker.client import Worker, last_words, start
from ..worker.messages import ENDS
from . import studio, uploads
from .controls import unquoted
from .questions import Questions, plain
from .studio import Studio

logger = logging.getLogger(__name__)

BUSY = ("queued", "running", "paused")
COUNTED = 20.0  # seconds for which a folder's pictures need not be counted again
LEAVING = 15.0  # seconds for which an ended worker's process is waited for
UNPLACED = "unplaced"  # a file in a run's folder, from its start here until its result is where the host looks


DESKS: dict[str, Desk] = {}  # of hosts that execute their own scripts anew within one process


def at_once(paths: Sequence[Path]) -> Callable[[], Sequence[Path]]:
    """The same folders every time they are asked for."""
    return lambda: paths


@dataclass
class Desk:
    """What a door's page can do.

    output: where runs are written (`<output>/aprendiz/<name>/`). roots: the folders that the page may open pictures in; the
    output's own is always one. before: called with each run that is about to begin, and the bytes that a step of it takes where
    they were estimated. finished: called in a thread with each run
    that this desk started and that finished, and again with one whose result is asked for; gives what calls it in a prompt.
    """

    output: Callable[[], Path]
    roots: Callable[[], Sequence[Path]]
    finished: Callable[[Run], str] | None = None
    before: Callable[[Run, int | None], None] | None = None
    studio: Studio = field(init=False)
    _workers: dict[Path, Worker] = field(default_factory=dict)
    _questions: Questions = field(default_factory=Questions)
    _counted: tuple[DataSettings, float, int] | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)
    _placing: threading.RLock = field(default_factory=threading.RLock)

    def __post_init__(self) -> None:
        self.studio = Studio(lambda: self.output().absolute() / "aprendiz" / ".tries")

    # Runs

    def runs(self) -> list[Run]:
        """The runs of this output folder, those changed last first."""
        folder = self.output() / "aprendiz"
        return [run for run in find_runs(folder) if run.folder.parent == folder.absolute()] if folder.is_dir() else []

    def run(self, name: str) -> Run:
        """The run of this name. Raises RunError where there is none, whatever the name tries."""
        if not NAME.fullmatch(name) or name in (".", ".."):
            raise RunError("There is no run {name} here.", name=name)
        folder = self.output().absolute() / "aprendiz" / name
        if not (folder / "job.json").is_file():
            raise RunError("There is no run {name} here.", name=name)
        return Run(folder)

    def begin(self, values: Mapping[str, Any]) -> Run:
        """Make the run of these values and start it; the very same job is taken up where it was left. Raises AprendizError."""
        job = self.job(values)
        from ..data import folder
        found = folder.scan(job.data)
        stopping = [problem for problem in found.problems if job.data.strict or not problem.warning]
        if stopping:
            raise ProblemsError(stopping)
        with self._lock:
            self._give_way(job)
            run = Run.create(self.output(), job, found.digest)
            if run.state == "finished":
                raise RunError("This very job is done already, as {name}. Turn on 'again' to train it anew.",
                               where="output.again", name=run.name)
            try:
                return self._start(run, job.output.keep_running, self._wanted(values, job.data))
            except AprendizError:
                if run.created:  # nothing was begun, and what was wrong is told
                    run.discard()
                raise

    def _give_way(self, job: Job) -> None:
        """Remove the run of this name that failed here before its first step: nothing was learned, and it is asked for anew."""
        run = Run(self.output().absolute() / "aprendiz" / (job.output.name or default_name(job)))
        if run.folder in self._workers and run.state == "failed":
            if not {"step", "checkpoint"} & {event["event"] for event in run.events()}:
                self._await_leaving(run)
                self.remove(run.name)

    def go_on(self, name: str) -> Run:
        """Go on with a run that was stopped, failed or died. Raises AprendizError."""
        with self._lock:
            run = self.run(name)
            if run.state == "finished":
                raise RunError("{name} is finished; there is nothing to go on with.", name=name)
            return self._start(run, run.job().output.keep_running)

    def _start(self, run: Run, keep_running: bool, wanted: int | None = None) -> Run:
        """Start a worker, unless one of ours is at it: two pages may have asked at once."""
        self._await_leaving(run)
        if run.is_locked or self._beginning(run):
            return run
        self.studio.rest()
        if self.before is not None:
            self.before(run, wanted)
        if self.finished is not None:
            with disk_errors(run.folder):
                (run.folder / UNPLACED).touch()
        worker = self._workers[run.folder] = start(run, keep_running=keep_running)
        threading.Thread(target=self._await_end, args=(worker,), name=f"aprendiz {run.name}", daemon=True).start()
        return run

    def _await_leaving(self, run: Run) -> None:
        """A worker that has said its last word may need a moment to go."""
        if run.state in ENDS:
            until = time.monotonic() + LEAVING
            while time.monotonic() < until and (run.is_locked or self._beginning(run)):
                time.sleep(0.05)

    def _await_end(self, worker: Worker) -> None:
        worker.wait()
        worker.let_go()
        if self.finished is not None and worker.run.state == "finished":
            with self._placing:
                self._place(worker.run)

    def _place(self, run: Run) -> str:
        """Hand a finished run's result to the host; from then on it is the person's to move or delete."""
        assert self.finished is not None
        told = self.finished(run)
        with suppress(OSError):
            (run.folder / UNPLACED).unlink(missing_ok=True)
        return told

    def place_missed(self) -> list[str]:
        """Hand over what finished while nobody was there to do it, once: the names of these runs."""
        placed: list[str] = []
        if self.finished is None:
            return placed
        with self._placing:
            for run in self.runs():
                if (run.folder / UNPLACED).is_file() and run.state == "finished" and not self._beginning(run):
                    try:
                        self._place(run)
                        placed.append(run.name)
                    except AprendizError as error:  # told where its result is asked for
                        logger.warning("%s", error.problem.english)
        return placed

    def place(self, name: str) -> str:
        """Have the host put a finished run's result where it looks, and what calls it in a prompt there. Raises RunError."""
        run = self.run(name)
        if run.state != "finished" or self.finished is None:
            raise RunError("{name} is not finished yet, so there is nothing to use. Go on with it first.", name=name)
        with self._placing:
            return self._place(run)

    def tell(self, name: str, command: str) -> None:
        """Steer a run. Raises RunError where nobody would hear it."""
        run = self.run(name)
        if self.state(run) not in BUSY:
            raise RunError("{name} is not being trained, so nothing can be told to it. Go on with it first.", name=name)
        run.tell(command)

    def _beginning(self, run: Run) -> bool:
        worker = self._workers.get(run.folder)
        return worker is not None and worker.alive

    def remove(self, name: str) -> None:
        """Delete a run's folder and all in it. Raises RunError while it is being trained."""
        run = self.run(name)
        if run.is_locked or self._beginning(run):
            raise RunError("{name} is being trained. Stop it before it is deleted.", name=name)
        gone = run.folder.with_name(f".{name}.{secrets.token_hex(4)}.tmp")
        with disk_errors(run.folder):
            move_into_place(run.folder, gone)  # away at once, whatever the deleting meets
        shutil.rmtree(gone, ignore_errors=True)
        self._workers.pop(run.folder, None)

    def state(self, run: Run) -> str:
        """A run's state; one that was just started is queued until its worker speaks.

        One that nobody starts any more has stopped; it is dead where its worker ended before it spoke.
        """
        state = run.state
        if state == "queued" and not (run.is_locked or self._beginning(run) or self._starting()):
            return "dead" if run.folder in self._workers else "stopped"
        begins = state not in (*BUSY, "finished") and self._beginning(run) and self._workers[run.folder].silent
        return "queued" if begins else state

    def _starting(self) -> bool:
        """Whether some run is about to begin, which may wait for the host."""
        free = self._lock.acquire(blocking=False)
        if free:
            self._lock.release()
        return not free

    def last_words(self, run: Run) -> Problem:
        """Why a dead run died, as far as its log tells."""
        worker = self._workers.get(run.folder)
        return last_words(run, worker.process.poll() if worker else None)

    # Jobs and folders

    def job(self, values: Mapping[str, Any]) -> Job:
        """The job of a page's values, with every path within the folders that may be opened. Raises ProblemsError."""
        plain = unfold(values)
        problems: list[Problem] = []
        for section, inner in plain.items():
            if isinstance(inner, Mapping):
                problems += self._paths(section, inner)
        try:
            job = Job.read(values)
        except ProblemsError as error:
            problems += error.problems
        if problems:
            raise ProblemsError(problems)
        return job

    def _paths(self, section: str, inner: Mapping[str, Any]) -> list[Problem]:
        """One problem for each path of a section that leads out of the folders that may be opened."""
        problems = []
        for name in path_names(section, inner):
            value = inner.get(name)
            if isinstance(value, str) and value and (section, value) != ("base", "micro"):
                try:
                    self.allowed(Path(value))
                except AprendizError as error:
                    problems += [Problem(problem.template, problem.fields, f"{section}.{name}") for problem in error.problems]
        return problems

    def allowed(self, path: Path) -> Path:
        """A path, links followed, if it lies in one of the folders that may be opened. Raises RunError."""
        roots = [self.output(), *self.roots()]
        try:
            real = path.expanduser().resolve()
            if any(real.is_relative_to(root.resolve()) for root in roots):
                return real
        except (OSError, RuntimeError, ValueError):
            pass
        raise RunError("{path} is outside the folders that this page may open: {roots}. Move it there, or name its folder: in "
                       "the settings of the host, or behind `python -m aprendiz app` with --folder.",
                       path=str(path), roots=", ".join(map(str, roots)))

    def data(self, values: Mapping[str, Any]) -> DataSettings:
        """The settings of the pictures alone, for a page that is still being filled in. Raises ProblemsError, RunError."""
        inner = unfold(values).get("data", {})
        inner = inner if isinstance(inner, Mapping) else {}
        settings, problems = read(DataSettings, inner, "data")
        stopping = [problem for problem in problems if not problem.warning]
        stopping += self._paths("data", inner)
        if settings is None or stopping:
            raise ProblemsError(stopping)
        return settings

    # Trying results out

    def try_out(self, values: Mapping[str, Any]) -> dict[str, str | None]:
        """Have pictures drawn with a base alone and with what was learned: the keys of both sides. Raises AprendizError.

        values: run and file (of a run, or a path where run is empty; both empty: the base alone), base (a path; empty: the
        run's own), weight, kept (key of a condition picture) or control (path of one), prompt, and what `studio.DRAWN` names.
        """
        run = self.run(str(values["run"])) if values.get("run") else None
        job = run.values() if run is not None else {}
        base = dict(job.get("base", {"path": "micro"}))
        if values.get("base") and values["base"] != base.get("path"):
            base = {"path": unquoted(str(values["base"]))}
        problems = self._paths("base", base)
        if problems:
            raise ProblemsError(problems)
        control = self.condition(str(values["kept"])) if values.get("kept") else None
        if control is None and values.get("control"):
            control = self.allowed(Path(unquoted(str(values["control"]))))
        weight = float(values.get("weight", 1.0))
        result: list[str] = []
        if run is not None:
            file = studio.file_of(run, str(values["file"]))
            result = studio.result_arguments(str(job["method"]["name"]), file, weight, control)
            result = studio.called(result, job.get("data", {}).get("trigger") or run.name, self.studio.place())
        elif values.get("file"):
            file = self.allowed(Path(unquoted(str(values["file"]))))
            result = studio.result_arguments(studio.method_of(file), file, weight, control)
        common = [*studio.base_arguments(base), *studio.picture_arguments(values)]
        seen = [Path(str(base[name])) for name in ("path", "vae", "text_encoder") if base.get(name)]
        learned = [Path(word.rpartition(":")[0] or word) if flag in studio.WEIGHTED else Path(word)
                   for flag, word in zip(result[::2], result[1::2])]
        plain = self.studio.side(common, seen)
        return {"base": plain.key, "tuned": self.studio.side([*common, *result], [*seen, *learned]).key if result else None}

    def keep_condition(self, data: bytes) -> tuple[str, tuple[int, int]]:
        """Keep a condition picture that a page sent: its key and its size in pixels. Raises AprendizError."""
        return uploads.keep(data, self._conditions())

    def condition(self, key: str) -> Path:
        """The file of a kept condition picture. Raises RunError."""
        return uploads.kept(key, self._conditions())

    def _conditions(self) -> Path:
        return self.output().absolute() / "aprendiz" / ".conditions"

    # Checks

    def check(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """What is wrong with a job and what it comes to: {"done": True, "problems", "forecast"}, until then {"done": False}.

        Reading every picture takes a while, so it is done by a process of its own, once for the same values.
        """
        try:
            self.job(values)
        except AprendizError as error:
            broken = {"done": True, "forecast": {}, "problems": [plain(problem) for problem in error.problems]}
            return broken
        return self._questions.ask(values, ["--check", str(self.output().absolute())])

    def estimate(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Steps, time and memory of a job, in sentences, without looking at its pictures: {"done": True, "lines"}, as `check`."""
        try:
            pictures = self._count(self.job(values).data)
        except AprendizError:
            return {"done": True, "lines": []}  # told of elsewhere
        return self._questions.ask(values, ["--estimate", str(pictures)])

    def _wanted(self, values: Mapping[str, Any], data: DataSettings) -> int | None:
        """Bytes that a step of this job takes, where the page has asked for its estimate; nobody waits for one."""
        told: int | None = self._questions.known(values, ["--estimate", str(self._count(data))]).get("wanted")
        return told

    def _count(self, data: DataSettings) -> int:
        """How many pictures there are, counted anew after a while only: a page asks until it has its answer."""
        from ..data import folder
        known = self._counted
        if known is None or known[0] != data or time.monotonic() - known[1] > COUNTED:
            known = self._counted = data, time.monotonic(), len(folder.listing(data)[1])
        return known[2]


def path_names(section: str, inner: Mapping[str, Any]) -> list[str]:
    """The settings of a section that name something on disk."""
    from .. import registry
    from ..settings import SECTIONS
    if section == "method":
        method = registry.methods().get(str(inner.get("name", "lora")))
        known = knobs(method.Settings) if method else {}
    else:
        known = knobs(SECTIONS[section]) if section in SECTIONS else {}
    return [name for name, one in known.items() if one.path]
