"""The page's form: what its script draws the settings from, and the way from what stands in it to a job's values and back.

A form is {"method": a method's name, "controls": {control's id: what stands in it}}; a control that is not named has its default.
Standard library only: hosts import this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import registry
from ..errors import Problem, RunError
from ..settings import SECTIONS
from ..texts import say
from .controls import Control, controls, filled, job_values
from .presets import Preset, cards, subjects

TITLES = {
    "base": Problem("The model"),
    "data": Problem("Pictures and captions"),
    "prior": Problem("What must not be forgotten"),
    "objective": Problem("Loss"),
    "optimizer": Problem("Strength of learning"),
    "training": Problem("Duration, size and device"),
    "samples": Problem("Pictures while training"),
    "output": Problem("Name and file"),
}


def drawn(checkpoints: Sequence[str] = ()) -> dict[str, Any]:
    """What the script draws the form from. checkpoints: the host's bases, to be chosen beside 'micro'; any path may be typed."""
    found = controls()
    return {"settings": [_setting(control, found, checkpoints) for control in found],
            "sections": [{"name": section, "title": str(TITLES[section])} for section in SECTIONS],
            "presets": [_preset(one, found) for one in subjects()], "cards": [_preset(one, found) for one in cards()]}


def _setting(control: Control, found: Sequence[Control], checkpoints: Sequence[str]) -> dict[str, Any]:
    """A control as the script has it. listed: its choices are a list beside which anything may be typed. when: on which other
    control it depends.
    """
    when, listed = None, isinstance(control.choices, str)
    if control.knob.when is not None:
        sibling = next(one for one in found if one.section == control.section and one.method == control.method
                       and one.name == control.knob.when[0])
        when = {"id": sibling.id, "values": [sibling.shown(value) for value in control.knob.when[1]]}
    default = control.shown(control.default)
    choices = list(dict.fromkeys([default, *checkpoints])) if listed else list(control.choices)
    return {"id": control.id, "where": control.where, "method": control.method, "basic": control.knob.level == "basic",
            "kind": control.kind, "label": control.label, "help": control.help, "choices": choices, "listed": listed,
            "path": control.knob.path is not None, "empty": control.empty, "default": default, "when": when}


def _preset(one: Preset, found: Sequence[Control]) -> dict[str, Any]:
    """A preset by the ids of the controls that it sets. Steps take the place of epochs and minutes."""
    others = {"training.epochs": None, "training.minutes": None} if "training.steps" in one.values else {}
    values = {**others, **one.values}
    return {"title": one.title, "method": one.method,
            "controls": {control.id: control.shown(values[control.where]) for control in found
                         if control.where in values and control.method in ("", one.method)}}


def values(form: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The job's values of a form. Raises KeyError, TypeError where it is none."""
    held = dict(form["controls"])
    return job_values(str(form["method"]), [(control, held[control.id]) for control in controls() if control.id in held])


def of_job(values: Mapping[str, Any]) -> dict[str, Any]:
    """The form of a job's values. Raises RunError for a method that there is not."""
    told = {**values, "output": {**values.get("output", {}), "again": False}}  # asked for once, not of whatever is made from it
    method = values.get("method", {}).get("name")
    if method not in registry.methods():
        raise RunError("This run was made with the method {method}, which is not known here. Choose one of: {known}.",
                       method=method, known=", ".join(registry.methods()))
    found = controls()
    standing = zip(found, filled(found, told))
    return {"method": method,
            "controls": {control.id: shown for control, shown in standing if shown != control.shown(control.default)}}


def texts() -> list[str]:
    """Every text of the form, in the language of this process."""
    told = drawn()
    found = [text for one in told["settings"] for text in (one["label"], one["help"], one["empty"], *one["choices"])]
    found += [say(method.title) for method in registry.methods().values()]
    found += [one["title"] for part in ("sections", "presets", "cards") for one in told[part]]
    return [text for text in dict.fromkeys(found) if text.strip()]

