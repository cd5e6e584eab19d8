"""A setting is one line, in the file that reads it.

`knob()` declares a field of a frozen, keyword-only dataclass. From it come a ComfyUI input, a control of the page, a
command-line flag, a line of the docs and a check. Standard library only: hosts import this.

Types of knobs: int, float, bool, str, tuple[str, ...] or tuple[int, ...], each also `| None` (off), and `float | str` (a
number, or a schedule in the WebUI's syntax).
"""

from __future__ import annotations

import difflib
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cache
from typing import Any, TypeVar

from .errors import Phrase, Problem

Settings = TypeVar("Settings")


@dataclass(frozen=True, kw_only=True)
class Knob:
    """What doors know of a setting besides its name, type and default.

    help: one sentence of what it does and costs. min, max: inclusive bounds. choices: the values there are, or the
    name of a list that the door fills ("checkpoints", "samplers"). when: (sibling knob, values): shown and checked only
    if that sibling has one of these values. group: the subject it is folded under. level: "basic" for those that stand open.
    path: "file", "folder" or "either" where it names something on disk.
    """

    help: str
    min: float | None = None
    max: float | None = None
    choices: tuple[str, ...] | str | None = None
    when: tuple[str, tuple[Any, ...]] | None = None
    group: str = ""
    level: str = "folded"
    path: str | None = None


def knob(default: Any, help: str, **rest: Any) -> Any:
    """Declare a setting: `rank: int = knob(16, "Rank of the low-rank update.", min=1, max=1024)`."""
    return field(default=default, metadata={"knob": Knob(help=help, **rest)})


def knobs(settings: type) -> dict[str, Knob]:
    """The knobs of a settings class, by name, in order."""
    return {f.name: f.metadata["knob"] for f in fields(settings) if "knob" in f.metadata}


@cache
def kinds(settings: type) -> dict[str, tuple[tuple[type, ...], bool]]:
    """For each knob the types it takes (`tuple` for lists) and whether None, that is off, is one of its values."""
    taken: dict[str, tuple[tuple[type, ...], bool]] = {}
    for name, hint in typing.get_type_hints(settings).items():
        options = typing.get_args(hint) if _is_union(hint) else (hint,)
        plain = tuple(typing.get_origin(option) or option for option in options if option is not type(None))
        taken[name] = (plain, type(None) in options)
    return taken


def element(settings: type, name: str) -> type:
    """The type of a list knob's elements: str for `tuple[str, ...]`, int for `tuple[int, ...]`."""
    hint = typing.get_type_hints(settings)[name]
    for option in (*typing.get_args(hint), hint):
        if typing.get_origin(option) is tuple:
            return typing.cast(type, typing.get_args(option)[0])
    raise TypeError(f"{settings.__name__}.{name} is no list")


def _is_union(hint: Any) -> bool:
    # Python 3.10 has types.UnionType for `int | None` and typing.Union for Optional.
    return typing.get_origin(hint) is typing.Union or type(hint).__name__ == "UnionType"


def read(settings: type[Settings], values: Mapping[str, Any], section: str = "") -> tuple[Settings | None, list[Problem]]:
    """Build a settings object from plain values (JSON or TOML), with every problem at once.

    None comes back in place of the settings when one of the values cannot be used.
    """
    problems = unknown_names(values, knobs(settings), section)
    taken: dict[str, Any] = {}
    for name in knobs(settings):
        if name in values:
            value, problem = fit(settings, name, values[name], section)
            if problem:
                problems.append(problem)
            else:
                taken[name] = value
    built = settings(**taken)
    problems += check(built, section)
    return (None if problems else built), problems


def unknown_names(values: Mapping[str, Any], known: Sequence[str] | Mapping[str, Any], section: str,
                  also: Sequence[str] = ()) -> list[Problem]:
    """One problem for each name that is no setting, with the nearest name there is (among `known` and `also`)."""
    problems = []
    for name in values:
        if name in known:
            continue
        where = f"{section}.{name}" if section else name
        close = difflib.get_close_matches(str(name), [*known, *also], n=1, cutoff=0.5)
        if close:
            problems.append(Problem("There is no setting '{name}'. Did you mean '{close}'?",
                                    {"name": where, "close": close[0]}, where))
        else:
            problems.append(Problem("There is no setting '{name}'. `python -m aprendiz methods` lists what there is.",
                                    {"name": where}, where))
    return problems


def fit(settings: type, name: str, value: Any, section: str = "") -> tuple[Any, Problem | None]:
    """A plain value as the knob's own type, or the problem with it."""
    types, off = kinds(settings)[name]
    where = f"{section}.{name}" if section else name
    if value is None and off:
        return None, None
    if tuple in types and isinstance(value, (list, tuple)):
        wanted = element(settings, name)
        if all(isinstance(item, wanted) and not isinstance(item, bool) for item in value):
            return tuple(value), None
    elif isinstance(value, bool):
        if bool in types:
            return value, None
    elif isinstance(value, int) and int in types:
        return value, None
    elif isinstance(value, (int, float)) and float in types:
        return float(value), None
    elif isinstance(value, float) and int in types and value.is_integer():
        return int(value), None
    elif isinstance(value, str) and str in types:
        return value, None
    return value, Problem("{name} is {value}, but it takes {kind}.",
                          {"name": where, "value": repr(value), "kind": kind_words(settings, name)}, where)


def kind_words(settings: type, name: str, off: bool = True) -> Phrase:
    """What a knob takes, in words for a message; whether it may be off too, if that is to be told."""
    types, may_be_off = kinds(settings)[name]
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", tuple: "a list"}
    kind = Phrase(words[types[0]])
    for more in types[1:]:
        kind = Phrase("{one} or {other}", one=kind, other=Phrase(words[more]))
    return Phrase("{kind}, or nothing for off", kind=kind) if off and may_be_off else kind


def check(settings: Any, section: str = "") -> list[Problem]:
    """Every bound and choice that is broken in a settings object."""
    problems = []
    for name, one in knobs(type(settings)).items():
        value = getattr(settings, name)
        if value is None or not applies(settings, one):
            continue
        where = f"{section}.{name}" if section else name
        shown = {"name": where, "value": value}
        numeric = isinstance(value, (int, float)) and not isinstance(value, bool)
        # A NaN is neither above nor below, hence "not within" rather than "outside".
        if numeric and one.min is not None and one.max is not None and not one.min <= value <= one.max:
            problems.append(Problem("{name} is {value}. It must lie between {low} and {high}.",
                                    {**shown, "low": one.min, "high": one.max}, where))
        elif numeric and one.min is not None and not value >= one.min:
            problems.append(Problem("{name} is {value}. It must be at least {low}.", {**shown, "low": one.min}, where))
        elif numeric and one.max is not None and not value <= one.max:
            problems.append(Problem("{name} is {value}. It must be at most {high}.", {**shown, "high": one.max}, where))
        if one.path and value == "":
            problems.append(Problem("{name} is empty. Name a file or a folder, or leave it out.", shown, where))
        if isinstance(one.choices, tuple) and value not in one.choices:
            close = difflib.get_close_matches(str(value), one.choices, n=1)
            template = "{name} is '{value}'. It can be: {choices}."
            if close:
                template = "{name} is '{value}'. It can be: {choices}. Did you mean '{close}'?"
            problems.append(Problem(template, {**shown, "choices": ", ".join(one.choices), "close": "".join(close)}, where))
    return problems


def applies(settings: Any, one: Knob) -> bool:
    """Whether a knob counts, given its siblings (`when`)."""
    return one.when is None or getattr(settings, one.when[0]) in one.when[1]
