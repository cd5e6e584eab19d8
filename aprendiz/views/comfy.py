"""The schema as ComfyUI inputs: which widget a setting is, how off is shown in it, and the way back to a job's values.

A widget cannot hold "nothing". Where a setting may be off, a number shows it as 0 (its own values begin above), a text as empty,
a yes or no as a third choice. Lists are texts of several lines. Standard library only: hosts import this.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import Problem
from ..knobs import Knob, element, kinds, knobs
from ..settings import SECTIONS

OFF, YES, NO = "off", "yes", "no"
LARGEST = 2**53 - 1  # JavaScript counts exactly up to here
LONG = ("sample_prompts", "prompts", "negative_prompt", "caption")  # texts that want room


def word(template: str) -> str:
    """An English text for people; the collector of translations finds it by this call."""
    return Problem(template).template


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a node: a widget, or a socket where `kind` is none of the five kinds of widget.

    kind: INT, FLOAT, STRING, BOOLEAN, COMBO, or the type of a socket. choices: of a COMBO, or the name of a list that the host
    fills. advanced: folded away where the host can. section, setting: where the value belongs in a job; empty for those that are
    the door's own. settings: the class that the setting stands in.
    """

    id: str
    kind: str
    tooltip: str
    default: Any = None
    min: float | None = None
    max: float | None = None
    step: float | None = None
    choices: tuple[str, ...] | str | None = None
    multiline: bool = False
    optional: bool = False
    advanced: bool = False
    control: bool = False
    section: str = ""
    setting: str = ""
    settings: type | None = None
    when: tuple[str, tuple[Any, ...]] | None = None

    @property
    def label(self) -> str:
        """What stands beside the widget: the setting's own name, with its section where it would not be understood alone."""
        name = self.id.replace("_", " ")
        return f"prior {name}" if self.section == "prior" and "prior" not in name else name

    @property
    def is_widget(self) -> bool:
        """Whether a value is typed or chosen in the node itself."""
        return self.kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def inputs(settings: type, section: str, leave: Iterable[str] = ()) -> list[Input]:
    """One input for each setting of a class, the basic ones first, in order; `leave` names those that stand elsewhere."""
    left = set(leave)
    found = [_input(settings, section, name) for name in knobs(settings) if name not in left]
    return [*(one for one in found if not one.advanced), *(one for one in found if one.advanced)]


def section_inputs(section: str, leave: Iterable[str] = ()) -> list[Input]:
    """The inputs of a common section of a job."""
    return inputs(SECTIONS[section], section, leave)


def only(settings: type, section: str, names: Iterable[str]) -> list[Input]:
    """The inputs of the settings named, in this order."""
    return [_input(settings, section, name) for name in names]


def _input(settings: type, section: str, name: str) -> Input:
    one = knobs(settings)[name]
    default = next(field.default for field in fields(settings) if field.name == name)
    shape = _shape(settings, name, one)
    return Input(id=section if name == "path" else name, tooltip=one.help, default=shown(settings, name, default),
                 multiline=name in LONG or tuple in kinds(settings)[name][0], advanced=one.level != "basic",
                 section=section, setting=name, settings=settings, when=one.when, **shape)


def _shape(settings: type, name: str, one: Knob) -> dict[str, Any]:
    """Kind of widget, choices and bounds."""
    types, off = kinds(settings)[name]
    if one.choices is not None:
        choices = (OFF, *one.choices) if off and isinstance(one.choices, tuple) else one.choices
        return {"kind": "COMBO", "choices": choices}
    if types == (bool,):
        return {"kind": "COMBO", "choices": (OFF, YES, NO)} if off else {"kind": "BOOLEAN"}
    if types in ((int,), (float,)) and (not off or (one.min or 0) > 0):
        low = 0 if off else one.min
        high = LARGEST if one.max is None else min(one.max, LARGEST)
        if types == (int,):
            return {"kind": "INT", "min": low, "max": high}
        # A widget shows as many digits as its step has.
        return {"kind": "FLOAT", "min": low, "max": high, "step": 0.01 if high > 1 else 0.0001}
    return {"kind": "STRING"}


def shown(settings: type, name: str, value: Any) -> Any:
    """A setting's value as its widget has it."""
    types, _ = kinds(settings)[name]
    kind = _shape(settings, name, knobs(settings)[name])["kind"]
    if types == (bool,):
        return value if kind == "BOOLEAN" else {None: OFF, True: YES, False: NO}[value]
    if tuple in types:
        return "\n".join(str(item) for item in value or ())
    if value is None:
        return {"INT": 0, "FLOAT": 0.0, "COMBO": OFF}.get(kind, "")
    if kind == "STRING":
        return f"{value:g}" if isinstance(value, float) else str(value)
    return value


def taken(settings: type, name: str, given: Any) -> Any:
    """A widget's value as the plain value that the schema's check expects; what cannot be one is left for the check to tell."""
    types, off = kinds(settings)[name]
    kind = _shape(settings, name, knobs(settings)[name])["kind"]
    if kind == "COMBO" and off and given == OFF:
        return None
    if types == (bool,):
        return {YES: True, NO: False}.get(given, given)
    if kind in ("INT", "FLOAT"):
        return None if off and given == 0 else given
    if not isinstance(given, str):
        return given
    if tuple in types:
        lines = [line.strip() for line in given.splitlines() if line.strip()]
        return [_number(line) for line in lines] if element(settings, name) is int else lines
    if not given.strip() and (off or str not in types):
        return None
    return _number(given) if float in types or int in types else given


def _number(given: str) -> Any:
    for kind in (int, float):
        try:
            return kind(given)
        except ValueError:
            continue
    return given.strip()


def flat(given: Mapping[str, Any]) -> dict[str, Any]:
    """What a node was given, by the ids of its inputs: a dynamic input comes with those that belong to its choice, None for those
    that the graph does not name."""
    found: dict[str, Any] = {}
    for name, value in given.items():
        inner = value if isinstance(value, Mapping) and name in value else {name: value}
        found |= {id: one for id, one in inner.items() if one is not None}
    return found


def asked_flat(inputs: Iterable[Input], asked: Mapping[str, Any]) -> dict[str, Any]:
    """The same from a queued graph's own values, whichever version of ComfyUI named them: `huber_delta` or `loss.huber_delta`."""
    known = {one.id for one in inputs if one.settings is not None}
    last = {name.rpartition(".")[2]: value for name, value in asked.items()}
    return {name: value for name, value in last.items() if name in known and not isinstance(value, list)}


def job_values(inputs: Iterable[Input], given: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What a node was given, as a job's nested plain values; inputs that a saved graph lacks keep their defaults."""
    given = flat(given)
    values: dict[str, dict[str, Any]] = {}
    for one in inputs:
        if one.settings is not None and one.id in given:
            values.setdefault(one.section, {})[one.setting] = taken(one.settings, one.setting, given[one.id])
    return values


def widget_values(inputs: Iterable[Input], job: Mapping[str, Any]) -> dict[str, Any]:
    """The way back: a job's nested plain values as the widgets of a node that would ask for the same."""
    values = {}
    for one in inputs:
        section = job.get(one.section)
        if one.settings is not None and isinstance(section, Mapping) and one.setting in section:
            values[one.id] = shown(one.settings, one.setting, section[one.setting])
    return values
