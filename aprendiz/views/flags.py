"""The schema as command-line flags: every setting is one, `--learning-rate 1e-4`, and `--set section.setting=value` reaches it.

Values travel as text to the one check that all doors share, so a bad value gets the same sentence everywhere. Standard library
only: hosts import this.
"""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from .. import registry
from ..errors import SettingsError
from ..knobs import Knob, kinds, knobs
from ..settings import SECTIONS, unfold
from ..texts import say
from . import usage

OFF = ("off", "none", "null")
TRUE = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
METAVARS = {int: "N", float: "X", str: "TEXT", bool: "yes|no", tuple: "VALUE"}


@dataclass(frozen=True)
class Flag:
    """One setting on the command line. methods: whose it is, where it belongs to a way of teaching; empty for all."""

    flag: str
    section: str
    name: str
    settings: type
    methods: tuple[str, ...] = ()

    @property
    def knob(self) -> Knob:
        """What doors know of it."""
        return knobs(self.settings)[self.name]

    @property
    def dest(self) -> str:
        """Where argparse puts it."""
        return f"{self.section}.{self.name}"


def flags() -> dict[str, Flag]:
    """Every setting there is, by its flag, in the order of the sections; `--base` and `--data` stand for their paths."""
    found: dict[str, Flag] = {}
    for section, settings in SECTIONS.items():
        for field in fields(settings):
            flag = "--" + (section if field.name == "path" else field.name).replace("_", "-")
            found[flag] = Flag(flag, section, field.name, settings)
    for method_name, method in registry.methods().items():
        for field in fields(method.Settings):
            flag = "--" + field.name.replace("_", "-")
            if flag in found and not found[flag].methods:
                flag = f"--method-{flag[2:]}"
            known = found[flag].methods if flag in found else ()
            settings = found[flag].settings if known else method.Settings
            found[flag] = Flag(flag, "method", field.name, settings, (*known, method_name))
    return found


def of_method(method: str) -> list[Flag]:
    """The settings of a way of teaching, each as that one means it: others may have one of the same name."""
    settings = registry.methods()[method].Settings
    return [replace(flag, settings=settings, methods=(method,)) for flag in flags().values() if method in flag.methods]


def add_flags(parser: argparse.ArgumentParser, method: str | None = None) -> None:
    """Give a parser the flag of every setting, under its section's title, with help, default and what it takes.

    method: whose settings the help tells; those of the others are taken as well, and answered by the job's check.
    """
    groups: dict[str, Any] = {}
    own = {flag.flag: flag for flag in of_method(method)} if method is not None else {}
    for flag in flags().values():
        flag = own.get(flag.flag, flag)
        title = usage.section(flag.section) + (f" ({', '.join(flag.methods)})" if flag.methods else "")
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        types, _ = kinds(flag.settings)[flag.name]
        text = describe(flag)
        if method is not None and flag.methods not in ((), (method,)):
            text = argparse.SUPPRESS
        elif not _alike(flag):
            text = say("Another thing in each method: `train METHOD --help` tells.")
        if types == (bool,):
            shape: dict[str, Any] = {"action": argparse.BooleanOptionalAction}
        elif tuple in types:
            shape = {"nargs": "+", "metavar": "TEXT"}
        else:
            shape = {"metavar": metavar(flag) if _alike(flag) else "VALUE"}
        groups[title].add_argument(flag.flag, dest=flag.dest, default=argparse.SUPPRESS, help=text, **shape)
    parser.add_argument("--set", dest="changes", action="append", default=[], metavar="SECTION.SETTING=VALUE",
                        help=say("Change any setting by its full name, such as --set method.rank=8; may be given several times."))


def _alike(flag: Flag) -> bool:
    """Whether a setting is the same in all methods that have it."""
    known = [knobs(registry.methods()[name].Settings)[flag.name] for name in flag.methods]
    return len({(knob.help, knob.choices) for knob in known}) < 2


def metavar(flag: Flag) -> str:
    """What stands for the value in the help."""
    if isinstance(flag.knob.choices, tuple):
        return "|".join(flag.knob.choices)
    if flag.knob.path:
        return {"file": "FILE", "folder": "FOLDER", "either": "FILE|FOLDER"}[flag.knob.path]
    return "|".join(METAVARS[kind] for kind in kinds(flag.settings)[flag.name][0])


def describe(flag: Flag) -> str:
    """One line of help: what it does, its bounds and its default."""
    default = next(field.default for field in fields(flag.settings) if field.name == flag.name)
    plain = json.dumps(default, ensure_ascii=False) if isinstance(default, (bool, tuple)) else str(default)
    shown = "off" if default is None else say("none") if default in ((), "") else plain
    low, high = flag.knob.min, flag.knob.max
    bounds = f" {low:g}..{high:g}." if low is not None and high is not None else ""
    # argparse fills in %(...)s.
    return f"{say(flag.knob.help)}{bounds} [{shown}]".replace("%", "%%")


def parse(settings: type, name: str, text: Any) -> Any:
    """A text from the command line as the plain value that the schema's check expects; left as it is where it cannot be one."""
    types, off = kinds(settings)[name]
    if isinstance(text, list):
        return [_number(item) if int in types else item for item in text]
    if not isinstance(text, str):
        return text
    if off and text.lower() in OFF and str not in types:
        return None
    if bool in types:
        return TRUE.get(text.lower(), text)
    if tuple in types:
        try:
            listed = json.loads(text)
        except ValueError:
            listed = text
        return listed if isinstance(listed, list) else [text]
    return _number(text) if int in types or float in types else text


def _number(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def job_values(namespace: argparse.Namespace, start: Mapping[str, Any], beside: Path | None = None) -> dict[str, Any]:
    """A job's plain values: `start` (a job file's), changed by flags, then by `--set`; paths made whole.

    beside: the folder of the job file, where its relative paths are looked for after the current one. Raises SettingsError.
    """
    values: dict[str, Any] = {section: dict(inner) if isinstance(inner, Mapping) else inner
                              for section, inner in unfold(start).items()}
    known = flags()
    given: dict[str, dict[str, Any]] = {}
    for flag in known.values():
        if flag.dest in vars(namespace):
            given.setdefault(flag.section, {})[flag.name] = parse(flag.settings, flag.name, vars(namespace)[flag.dest])
    for change in namespace.changes:
        key, sign, text = change.partition("=")
        if not sign:
            raise SettingsError("--set takes a setting and its value, such as --set method.rank=8; '{given}' has no '='.",
                                given=change)
        for section, inner in unfold({key.strip().replace("-", "_"): text}).items():
            _change(given, known, section, inner)
    for section, inner in given.items():
        held = values.setdefault(section, {})
        if isinstance(held, dict):
            held.update(inner)
    _keep_one(values, given)
    _whole_paths(values, beside)
    return values


def _change(given: dict[str, dict[str, Any]], known: Mapping[str, Flag], section: str, inner: Any) -> None:
    """Take over one `--set`; names that are none are kept, so that the check can say which is nearest."""
    if not isinstance(inner, Mapping):
        close = nearest(section, [flag.name for flag in known.values()]) or section
        home = next((flag.section for flag in known.values() if flag.name == close), "method")
        section, inner = home, {section: inner}
    for name, text in inner.items():
        flag = next((flag for flag in known.values() if flag.section == section and flag.name == name), None)
        given.setdefault(section, {})[name] = parse(flag.settings, name, text) if flag else text


def _keep_one(values: dict[str, Any], given: Mapping[str, Mapping[str, Any]]) -> None:
    """`--steps` takes the place of a job file's epochs or minutes, and each of them that of the others."""
    asked = given.get("training", {})
    durations = ("steps", "epochs", "minutes")
    if any(asked.get(name) is not None for name in durations) and isinstance(values.get("training"), dict):
        for other in durations:
            if other not in asked:
                values["training"].pop(other, None)


def _whole_paths(values: dict[str, Any], beside: Path | None) -> None:
    """Make every path that exists absolute, so that the run can go on from any folder."""
    for flag in flags().values():
        section = values.get(flag.section)
        value = section.get(flag.name) if isinstance(section, dict) else None
        if not flag.knob.path or not isinstance(value, str) or not value or (flag.dest == "base.path" and value == "micro"):
            continue
        for folder in (Path.cwd(), *([beside] if beside else [])):
            if (folder / Path(value).expanduser()).exists():
                section[flag.name] = str((folder / Path(value).expanduser()).absolute())  # type: ignore[index]
                break


def nearest(word: str, known: Sequence[str]) -> str | None:
    """The flag or command that was probably meant."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return close[0] if close else None
