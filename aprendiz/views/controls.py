"""The settings as controls of a page: their ids, how a value stands in one, and the way back to a job's values.

A control cannot hold "nothing": a text that is empty is off. Lists are texts of a line each. The schema's own check says what is
wrong, so a control refuses nothing. Standard library only: hosts import this.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from .. import registry
from ..errors import AprendizError, Problem
from ..knobs import Knob, kinds, knobs
from ..settings import SECTIONS, Job
from ..texts import label, language, say
from .flags import parse

OFF, YES, NO = "off", "yes", "no"
LONG = ("sample_prompts", "prompts", "negative_prompt", "caption")  # texts that want room
PATHS = {"base.path": Problem("Base"), "data.path": Problem("Pictures")}
EXAMPLE = r"C:\Users\me\Pictures\vase" if os.name == "nt" else "~/pictures/vase"
COMMA = re.compile(r"\d+,\d+")  # a number as it is written in Spanish and Portuguese
EXACT = 2**31  # whole numbers up to here are typed into a field for numbers


@dataclass(frozen=True)
class Control:
    """One setting on the page. method: whose it is, where it belongs to a way of teaching; empty for all."""

    section: str
    name: str
    settings: type
    method: str = ""

    @property
    def id(self) -> str:
        """The id of its element."""
        return "-".join(("aprendiz", self.method or self.section, self.name)).replace("_", "-")

    @property
    def where(self) -> str:
        """How problems name it."""
        return f"{self.section}.{self.name}"

    @property
    def knob(self) -> Knob:
        """What doors know of it."""
        return knobs(self.settings)[self.name]

    @property
    def label(self) -> str:
        """What stands above it, in the person's language."""
        if self.where in PATHS:
            return str(PATHS[self.where])
        name = self.name.replace("_", " ")
        if self.section == "prior" and "prior" not in name:  # it would not be understood alone
            name = f"prior {name}"
        told = label(name, language())
        return told[:1].upper() + told[1:]

    @property
    def help(self) -> str:
        """What it does, in the person's language, and there also the name by which messages and job files call it."""
        told = say(self.knob.help)
        return told if language() == "en" else f"{told} ({self.section if self.name == 'path' else self.name})"

    @property
    def default(self) -> Any:
        """The setting's default."""
        return next(field.default for field in fields(self.settings) if field.name == self.name)

    @property
    def kind(self) -> str:
        """checkbox, choice, number, lines or text."""
        types, off = kinds(self.settings)[self.name]
        if types == (bool,):
            return "choice" if off else "checkbox"
        if self.knob.choices is not None:
            return "choice"
        if tuple in types or self.name in LONG:
            return "lines"
        small = self.knob.max is not None and self.knob.max <= EXACT or self.knob.max is None
        return "number" if types == (int,) and small and not off else "text"

    @property
    def choices(self) -> tuple[str, ...] | str:
        """What can be chosen, or the name of a list that the door fills."""
        types, off = kinds(self.settings)[self.name]
        if types == (bool,):
            return (OFF, YES, NO)
        own = self.knob.choices or ()
        return (OFF, *own) if off and not isinstance(own, str) else own

    @property
    def empty(self) -> str:
        """What an empty control means, or wants."""
        if self.where == "data.path":
            return say("The full path of a folder, such as {example}", example=EXAMPLE)
        return say("off") if self.default is None and str not in kinds(self.settings)[self.name][0] else ""

    def shown(self, value: Any) -> Any:
        """A setting's value as its control has it."""
        if self.kind == "checkbox":
            return bool(value)
        if isinstance(value, (tuple, list)):
            return "\n".join(map(str, value))
        if self.kind == "choice":
            return {None: OFF, True: YES, False: NO}.get(value, value) if value is None or isinstance(value, bool) else value
        if self.kind == "number":
            return value
        if isinstance(value, float) and float(short := f"{value:g}") == value:
            return short
        return "" if value is None else str(value)

    def taken(self, given: Any) -> Any:
        """What stands in the control as the plain value that the schema's check expects; no number that JSON has no word for."""
        value = self._taken(unquoted(given) if self.knob.path and isinstance(given, str) else given)
        return str(given) if isinstance(value, float) and not math.isfinite(value) else value

    def _taken(self, given: Any) -> Any:
        types, off = kinds(self.settings)[self.name]
        if types == (bool,):
            return {OFF: None, YES: True, NO: False}.get(given, given) if off else bool(given)
        if tuple in types:
            lines = [line.strip() for line in str(given or "").splitlines() if line.strip()]
            return [parse(self.settings, self.name, [line])[0] for line in lines]
        if self.kind == "choice":
            return None if given == OFF and off else given
        if given is None or (isinstance(given, str) and not given.strip()):
            return None if off else self.default
        if isinstance(given, str) and float in types and COMMA.fullmatch(given.strip()):
            given = given.replace(",", ".")
        if isinstance(given, float) and given.is_integer() and int in types:
            return int(given)
        return parse(self.settings, self.name, given.strip()) if isinstance(given, str) else given


def unquoted(path: str) -> str:
    """A path as it was pasted: Windows copies it with quotation marks around it."""
    path = path.strip()
    return path[1:-1] if len(path) > 1 and path[0] == path[-1] == '"' else path


def controls() -> list[Control]:
    """Every setting there is, in the order of the sections, then each method's own."""
    found = [Control(section, name, settings) for section, settings in SECTIONS.items() for name in knobs(settings)]
    for method_name, method in registry.methods().items():
        found += [Control("method", name, method.Settings, method_name) for name in knobs(method.Settings)]
    return found


def job_values(method: str, given: Iterable[tuple[Control, Any]]) -> dict[str, dict[str, Any]]:
    """A job's values from what stands in the controls; those of other methods do not count."""
    values: dict[str, dict[str, Any]] = {"method": {"name": method}}
    for control, value in given:
        if control.method in ("", method):
            values.setdefault(control.section, {})[control.name] = control.taken(value)
    return values


def filled(order: Sequence[Control], values: Mapping[str, Any]) -> list[Any]:
    """What stands in the controls for a job's values.

    What they do not say has its default; so has what follows from the rest of the job where it is not set, or it would stay as it
    is under another method, optimizer or base.
    """
    method = str(values.get("method", {}).get("name", ""))
    told = []
    for control in order:
        section = values.get(control.section, {}) if control.method in ("", method) else {}
        value = section.get(control.name, control.default)
        told.append(control.shown(control.default if value == control.default or follows(values, control) else value))
    return told


def follows(values: Mapping[str, Any], control: Control) -> bool:
    """Whether a job has the same value for a control where it is not set."""
    inner = dict(values[control.section])
    value = inner.pop(control.name)
    try:
        return bool(Job.read({**values, control.section: inner}).values()[control.section][control.name] == value)
    except AprendizError:  # a job that cannot be read as it is
        return False
