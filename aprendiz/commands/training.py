"""train, check, resume, quickstart: teaching in this very process."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import AprendizError, Problem, ProblemsError, SettingsError
from ..knobs import read
from ..run import Run, Stopped, find_run
from ..settings import DataSettings, Job
from ..texts import say
from ..views import flags
from ..views.terminal import Screen, own_output, put, put_json
from ..worker.attempt import attempt_here, libraries_to_log


def read_job(asked: argparse.Namespace) -> Job:
    """The job that the arguments ask for. Raises ProblemsError with all that is wrong; exits with 2 without pictures."""
    return Job.read(job_values(asked))


def job_values(asked: argparse.Namespace) -> dict[str, Any]:
    """The same, as plain values that nothing has checked yet."""
    file = Path(asked.what)
    if file.suffix.lower() in (".toml", ".json"):
        return flags.job_values(asked, job_file(file), file.absolute().parent)
    if file.exists() and asked.what.replace("-", "_") not in registry.methods():
        raise SettingsError("{file} is no job: these are files that end in .toml or .json. Name one, or a method "
                            "(`python -m aprendiz methods` lists them).", file=str(file))
    values = flags.job_values(asked, {"method": {"name": asked.what.replace("-", "_")}})
    if "path" not in values.get("data", {}) and asked.what in registry.methods():
        asked.part.error(say("No pictures were given. Name their folder with --data FOLDER."))
    return values


def job_file(file: Path) -> dict[str, Any]:
    """A job file's values. Raises SettingsError."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError("{file} is not in UTF-8, so it cannot be read. Save it as UTF-8.", file=file.name) from error
    except FileNotFoundError as error:
        raise SettingsError("There is no job {file}. Check the path.", file=str(file)) from error
    except OSError as error:
        raise SettingsError("{file} cannot be read: {reason}.", file=str(file), reason=error.strerror or str(error)) from error
    try:
        values = json.loads(text) if file.suffix.lower() == ".json" else _toml(text)
    except ValueError as error:
        raise SettingsError("{file} cannot be read as a job: {reason}. Mend that place, or write the job anew.",
                            file=file.name, reason=str(error)) from error
    if not isinstance(values, dict):
        raise SettingsError("{file} holds no settings. Write them by name, such as {{\"data\": \"my-pictures\"}}.",
                            file=file.name)
    return values


def _toml(text: str) -> Any:
    try:
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
    except ModuleNotFoundError as error:
        raise SettingsError("This Python cannot read TOML. Install tomli with {command}, or write the job as JSON.",
                            command=f"{sys.executable} -m pip install tomli") from error
    return tomllib.loads(text)


def train(asked: argparse.Namespace) -> int:
    """Train a job from its beginning, or from where it was left."""
    job = read_job(asked)
    return teach(joined_run(job, asked.out), asked.json)


def joined_run(job: Job, out: Path) -> Run:
    """The run of a job; where accelerate launched several processes, the main one makes it and the others are told."""
    from ..data.folder import scan
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Run.create(out, job, scan(job.data).digest)
    from .. import devices
    from ..processes import Processes
    processes = Processes(devices.device(job.training.device))
    if not processes.main:
        folder = processes.same("")
        if not folder:
            raise SystemExit(1)
        return Run.open(Path(folder), main=False)
    try:
        run = Run.create(out, job, scan(job.data).digest)
    except AprendizError:
        processes.same("")
        raise
    processes.same(str(run.folder))
    return run


def teach(run: Run, machine: bool, judge: Callable[[Run, Screen], None] | None = None) -> int:
    """Train a run in this process, drawn on the screen; a finished one answers with its result.

    judge: measures what was learned, where the run's own report does not tell.
    """
    screen = Screen(own_output(), machine)

    def show(event: Mapping[str, Any]) -> None:
        if event["event"] == "ready" and not machine:  # nothing was wrong, so the folder will stay
            screen.line(say("Run {name} in {folder}", name=run.name, folder=str(run.folder)))
        screen.show(event)

    if run.state == "finished":
        if machine:
            screen.show([event for event in run.events() if event["event"] == "finished"][-1])
        elif run.main:
            screen.line(say("This very job is done already. `train` with --again trains it anew."))
    else:
        run.forget_commands()
        try:
            attempt_here(run, show)
        except (Stopped, KeyboardInterrupt):
            if run.main and not machine:
                screen.line(say("Stopped after step {step}. Go on with: {command}", step=run.step,
                                command=f"{this_command()} resume {quoted(run.folder)}"))
            raise
        finally:
            screen.close()
    if judge is not None and run.main and scores_of(run).get("subject_after") is None:
        with libraries_to_log(run.log, begin=False):
            judge(run, screen)
    if run.main and not machine:
        tell_result(run, screen)
    return 0


def scores_of(run: Run) -> dict[str, Any]:
    """The figures of the report, as far as they were measured."""
    file = run.report / "scores.json"
    scores: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return scores


def tell_result(run: Run, screen: Screen) -> None:
    """The last screen: what was learned in figures, where everything is, what to type next."""
    scores = scores_of(run)
    if scores.get("subject_before") is not None and scores.get("subject_after") is not None:
        screen.line(say("What was taught is right in {after} of {pictures} pictures; before, in {before}.",
                        pictures=scores["pictures"], before=f"{scores['subject_before']:.0%}",
                        after=f"{scores['subject_after']:.0%}"))
    if scores.get("kept") is not None:
        screen.line(say("Of what the base drew right before, {kept} still is.", kept=f"{scores['kept']:.0%}"))
    screen.line(say("Learned: {file}", file=str(run.file)))
    for name in ("grid.png", "loss.png"):
        if (run.report / name).is_file():
            screen.line(say("Report: {file}", file=str(run.report / name)))
    job = run.job()
    drawn = [event["prompt"] for event in run.events() if event["event"] == "sample" and event.get("prompt")]
    prompt = next(iter((*job.samples.sample_prompts, *drawn)), job.data.trigger or "...")
    picture = run.folder.parent.parent / "picture.png"
    from ..evaluate.report import condition_file
    condition = condition_file(run.samples, 0)
    told = registry.methods()[job.method_name].arguments(run.file, str(condition) if condition.is_file() else "...")
    using = " ".join(quoted(word) for word in told)
    command = (f"{this_command()} generate --base {quoted(job.base.path)} {using} --prompt {quoted(prompt)} "
               f"--out {quoted(picture)}")
    screen.line(say("Draw with it: {command}", command=command))


def this_command() -> str:
    """What to type for another command of ours in this very environment, whether it is activated or not."""
    python = os.path.abspath(sys.executable)
    found = shutil.which("python")
    if found is None or os.path.normcase(os.path.abspath(found)) != os.path.normcase(python):
        inside = Path(python).is_relative_to(Path.cwd())
        return f"{quoted(os.path.relpath(python) if inside else python)} -m aprendiz"
    return "python -m aprendiz"


def quoted(word: object) -> str:
    """A word as one types it: in quotes where it holds more than plain letters."""
    text = str(word)
    return text if re.fullmatch(r"[\w@%+=:,./\\-]+", text) else '"' + text.replace('"', '\\"') + '"'


def quickstart(asked: argparse.Namespace) -> int:
    """The main job on the embedded base, with pictures drawn on the spot."""
    from ..quickstart import measure, quickstart_job

    def judge(run: Run, screen: Screen) -> None:
        measure(run, None if asked.json else lambda done, total: screen.progress(say("Judging"), done, total))

    job = quickstart_job(asked.out)
    return teach(joined_run(job, asked.out), asked.json, judge)


def resume(asked: argparse.Namespace) -> int:
    """Go on with a run."""
    folder = find_run(asked.run).folder
    return teach(Run.open(folder, main=int(os.environ.get("RANK", "0")) == 0), asked.json)


def check(asked: argparse.Namespace) -> int:
    """Everything that can be known before training: every problem at once. 1 where something would stop the run."""
    problems: list[Problem] = []
    strict = False
    try:
        job = read_job(asked)
    except ProblemsError as error:
        problems += [*error.problems, *picture_problems(asked)]
    else:
        from ..check import check as look
        found = look(job, asked.out)
        problems += found.problems
        strict = job.data.strict
        if found.report is not None and not asked.json:
            put("\n".join([*found.report.forecast.lines(), *foreseen(job, found.report.forecast.pictures)]))
    problems.sort(key=lambda problem: not problem.warning)  # what stops the run last, where it is still in sight
    for problem in problems:
        tell_problem(problem, asked.json)
    errors = sum(not problem.warning for problem in problems)
    stops = bool(errors or (strict and problems))
    if not asked.json:
        tell_verdict(errors, len(problems) - errors, stops)
    return 1 if stops else 0


def tell_verdict(errors: int, warnings: int, stops: bool) -> None:
    """The last line of a check."""
    if not stops:
        put(say("This can be trained."))
    elif errors:
        put(say("This cannot be trained yet. Errors: {errors}; warnings: {warnings}.", errors=errors, warnings=warnings),
            error=True)
    else:
        put(say("This cannot be trained yet, because strict stops at warnings too. Errors: {errors}; warnings: {warnings}.",
                errors=errors, warnings=warnings), error=True)


def foreseen(job: Job, pictures: int) -> list[str]:
    """Time and memory in sentences, as far as they are known; what is wrong is told elsewhere."""
    from ..foresight import foresee
    try:
        return foresee(job, pictures).lines() if pictures else []
    except AprendizError:
        return []


def picture_problems(asked: argparse.Namespace) -> list[Problem]:
    """What is wrong with the pictures of a job whose settings cannot be used: all is told at once."""
    from ..data.folder import scan
    settings, _ = read(DataSettings, job_values(asked).get("data", {}), "data")
    if settings is None or settings.path is None:
        return []
    try:
        return list(scan(settings).problems)
    except AprendizError as error:
        return error.problems


def tell_problem(problem: Problem, machine: bool) -> None:
    """One problem, for people or for machines."""
    if machine:
        put_json({**asdict(problem), "text": str(problem)})
    else:
        put(say("Warning: {text}", text=str(problem)) if problem.warning else str(problem), error=True)
