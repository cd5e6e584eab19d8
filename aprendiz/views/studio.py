"""Trying results out: pictures with a base alone and with what was learned, on the same seeds, by a process of their own.

The process keeps its base open (`commands/studio.py`) and is started where something is asked for first. What was drawn lies in
`<output>/aprendiz/.tries/<key>/`, the key being all that the pictures follow from, so that nothing is drawn twice: a weight that
was tried before, and the base's side of every comparison, are there at once. Standard library only: hosts import this.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import ModelError, Problem, RunError
from ..files import disk_errors
from ..run import Run
from ..settings import NAME
from ..texts import say
from ..worker.client import PROGRAM
from .questions import plain

KEPT = 200  # folders of pictures; older ones go
MOST = 16  # pictures of a side
DRAWN = ("seed", "count", "steps", "guidance", "sampler", "negative", "width", "height", "device")  # of a picture, as flags
WEIGHTED = ("--lora", "--controlnet", "--hypernetwork", "--prompt-adapter")  # FILE[:weight]


@dataclass
class Side:
    """The pictures of one side of a comparison. ready: all are there. waits: the device that a run holds, by: its name."""

    key: str
    arguments: list[str]
    folder: Path
    done: int = 0
    total: int = 0
    waits: str = ""
    by: str = ""
    problems: list[dict[str, Any]] = field(default_factory=list)
    ready: bool = False

    def told(self) -> dict[str, Any]:
        """As the page has it."""
        count = len(self.files()) if self.ready else 0
        return {"key": self.key, "count": count, "done": self.done, "total": self.total, "waits": self.waits, "by": self.by,
                "problems": self.problems,
                "ready": self.ready or bool(self.problems)}

    def files(self) -> list[Path]:
        """The pictures, in order of their seeds."""
        return sorted(self.folder.glob("*.png"))


class Studio:
    """Asks for pictures and hands them over. place: where they are kept."""

    def __init__(self, place: Callable[[], Path]) -> None:
        self.place = place
        self._sides: dict[str, Side] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def side(self, arguments: Sequence[str], files: Sequence[Path]) -> Side:
        """Have the pictures of these arguments of `generate` drawn, unless they are there. files: what else they follow from."""
        facts = [list(arguments), [[str(file), *_stamp(file)] for file in files]]
        key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]
        with self._lock:
            known = self._sides.get(key)
            if known is not None and not known.problems and (not known.ready or known.files()):
                return known
            side = self._sides[key] = Side(key, list(arguments), self.place() / key)
            side.ready = (side.folder / "whole").is_file()
            if not side.ready:
                with disk_errors(side.folder):
                    shutil.rmtree(side.folder, ignore_errors=True)
                    side.folder.mkdir(parents=True)
                self._ask(side)
            self._tidy()
            return side

    def told(self, key: str) -> dict[str, Any]:
        """How far a side is. Raises RunError for a key that there is not."""
        return self._known(key).told()

    def picture(self, key: str, number: int) -> Path:
        """A drawn picture's file. Raises RunError where there is none."""
        files = self._known(key).files()
        if not 0 <= number < len(files):
            raise RunError("There is no such picture. Draw it again.")
        return files[number]

    def _known(self, key: str) -> Side:
        side = self._sides.get(key)
        if side is None:
            raise RunError("There is no such picture. Draw it again.")
        return side

    def end(self) -> None:
        """End the process: what is being drawn is given up, and its memory is free."""
        with self._lock:
            process, self._process = self._process, None
            for side in self._sides.values():
                if not side.ready and not side.problems:
                    side.problems = [plain(GIVEN_UP)]
        if process is not None:
            with suppress(OSError):
                process.kill()

    def rest(self) -> None:
        """Let the process go if it draws nothing: a run is about to need the memory."""
        if not any(not side.ready and not side.problems for side in list(self._sides.values())):
            self.end()

    def _ask(self, side: Side) -> None:
        """Hand a question to the process, started where there is none."""
        line = json.dumps({"id": side.key, "arguments": [*side.arguments, "--out", f"{side.folder}{os.sep}"]}) + "\n"
        for _ in range(2):  # the process may end by itself at this very moment
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(line.encode())
                self._process.stdin.flush()
                return
            except (OSError, ValueError):
                self._process = None
        side.problems = [plain(ENDED)]

    def _start(self) -> subprocess.Popen[bytes]:
        python = os.environ.get("APRENDIZ_PYTHON") or sys.executable
        hidden = 0x08000000 if sys.platform == "win32" else 0  # no window of its own
        place = self.place()
        with disk_errors(place):
            place.mkdir(parents=True, exist_ok=True)
            log = open(place / "log.txt", "wb")
        try:
            process = subprocess.Popen([python, str(PROGRAM), "--command", "studio"], stdin=subprocess.PIPE,
                                       stdout=subprocess.PIPE, stderr=log, env={**os.environ, "PYTHONUTF8": "1"},
                                       creationflags=hidden)
        except OSError as error:
            raise RunError("The Python for the worker could not be started: {python} ({reason}). Set APRENDIZ_PYTHON to one that "
                           "has torch and diffusers.", python=python, reason=error.strerror or str(error)) from error
        finally:
            log.close()
        threading.Thread(target=self._listen, args=(process,), name="aprendiz studio", daemon=True).start()
        return process

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        """Take what the process tells until it ends; what it then has not drawn, it will not draw."""
        assert process.stdout is not None and process.stdin is not None
        with process.stdout:
            for raw in process.stdout:
                try:
                    told = json.loads(raw)
                except ValueError:
                    continue
                side = self._sides.get(str(told.get("id")))
                if side is not None:
                    self._take(side, told)
        process.wait()
        with suppress(OSError):
            process.stdin.close()
        for side in list(self._sides.values()):
            if not side.ready and not side.problems and self._process in (process, None):
                side.problems = [plain(ENDED)]

    @staticmethod
    def _take(side: Side, told: Mapping[str, Any]) -> None:
        if "problems" in told:
            side.problems = [{"where": one.get("where"), "warning": one.get("warning"), "text": one.get("text")}
                             for one in told["problems"]]
        elif "waits" in told:
            side.waits, side.by = str(told["waits"]), str(told.get("by", ""))
        elif "files" in told:
            with suppress(OSError):
                (side.folder / "whole").write_bytes(b"")
            side.ready = True
        else:
            side.waits, side.done, side.total = "", int(told.get("done", 0)), int(told.get("total", 0))

    def _tidy(self) -> None:
        """Keep the newest folders."""
        while len(self._sides) > KEPT:
            self._sides.pop(next(iter(self._sides)))
        with suppress(OSError):
            folders = sorted((one for one in self.place().iterdir() if one.is_dir()), key=lambda one: one.stat().st_mtime)
            for folder in folders[:max(0, len(folders) - KEPT)]:
                shutil.rmtree(folder, ignore_errors=True)


ENDED = Problem("The process that draws has ended, perhaps because memory ran out. Try again, with a smaller size or while "
                "nothing is trained.")
GIVEN_UP = Problem("The drawing was stopped.")


def _stamp(file: Path) -> tuple[int, int]:
    try:
        known = file.stat()
    except OSError:
        return 0, 0
    return known.st_mtime_ns, known.st_size


# What `generate` is told


def base_arguments(values: Mapping[str, Any]) -> list[str]:
    """A base's settings as flags."""
    flags = {"path": "--base", "vae": "--vae", "text_encoder": "--text-encoder", "prediction": "--prediction",
             "clip_skip": "--clip-skip"}
    return [word for name, flag in flags.items() if values.get(name) is not None for word in (flag, str(values[name]))]


def picture_arguments(values: Mapping[str, Any]) -> list[str]:
    """Prompt, seed, size and sampler as flags; what is empty is left to its default. Texts may begin with a hyphen."""
    given = {name: str(values[name]) for name in DRAWN if values.get(name) not in (None, "")}
    count = given.get("count", "1")
    if count.isdigit() and int(count) > MOST:
        given["count"] = str(MOST)
    return [f"--prompt={values.get('prompt', '')}", *(f"--{name}={value}" for name, value in given.items())]


def result_arguments(method: str, file: Path, weight: float, control: Path | None) -> list[str]:
    """What was learned as flags: what the method says of its file, with a weight and a condition picture where it takes them."""
    told = registry.methods()[method].arguments(file)
    words = [f"{word}:{weight:g}" if flag in WEIGHTED else word for flag, word in zip(told[::2], told[1::2])]
    if "--control" in told[::2]:
        if control is None:
            raise ModelError("A ControlNet draws after a condition picture. Name one.", where="control")
        words = [str(control) if flag == "--control" else word for flag, word in zip(told[::2], words)]
    return [one for flag, word in zip(told[::2], words) for one in (flag, word)]


def called(arguments: Sequence[str], name: str, place: Path) -> list[str]:
    """The same, every embedding under the name that calls it in prompts: the file of a step has its number in its name."""
    changed = list(arguments)
    for number, flag in enumerate(arguments[:-1]):
        file = Path(arguments[number + 1])
        if flag == "--embedding" and file.stem != name and NAME.fullmatch(name):
            copy = place / "words" / hashlib.sha256(f"{file}{_stamp(file)}".encode()).hexdigest()[:16] / f"{name}{file.suffix}"
            with disk_errors(copy):
                copy.parent.mkdir(parents=True, exist_ok=True)
                if not copy.is_file():
                    part = copy.with_name(f".{secrets.token_hex(4)}.tmp")
                    shutil.copyfile(file, part)
                    os.replace(part, copy)
            changed[number + 1] = str(copy)
    return changed


def file_of(run: Run, name: str) -> Path:
    """A file of weights in a run's folder, by its name alone. Raises RunError."""
    file = run.folder / name
    plain = NAME.fullmatch(name) is not None and file.suffix == ".safetensors"
    if not plain or not file.is_file() or file.is_symlink():
        raise RunError("The run {name} has no file {file}.", name=run.name, file=name)
    return file


def takes() -> dict[str, dict[str, Any]]:
    """For each method its title, whether what it learned takes a weight, and whether it draws after a condition picture."""
    told = {name: method.arguments(Path("x.safetensors"))[::2] for name, method in registry.methods().items()}
    return {name: {"title": say(registry.methods()[name].title), "weight": any(flag in WEIGHTED for flag in flags),
                   "control": "--control" in flags} for name, flags in told.items()}


def method_of(file: Path) -> str:
    """The method that such a file comes from, told by its header alone. Raises ModelError where it is no result."""
    from ..formats import recognise
    from ..formats.weights import open_weights
    if not file.is_file():
        raise ModelError("There is no file {file}.", file=str(file), where="file")
    kind = recognise.kind(open_weights(file).shapes)
    if kind not in registry.methods():
        raise ModelError("{file} is nothing that can be tried here. Name a LoRA, an embedding or a ControlNet, as .safetensors.",
                         file=file.name, where="file")
    return kind
