"""What can go wrong in a way that a person can mend.

    AprendizError
    ├── SettingsError    a value, a name or a combination in the job
    ├── DatasetError     pictures, captions, masks, the folder they are in
    ├── ModelError       a base, a LoRA or another file of weights
    ├── DeviceError      a card that is not there, memory that does not do
    ├── RunError         a run's folder, its lock, its disk
    ├── TrainingError    the loss stopped being a number
    └── ProblemsError    several problems, told at once

Each carries an English template with named fields, which is also the key of its translations
(`aprendiz/texts`). Anything else that is raised is our own bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .texts import say


class Phrase(str):
    """Words within a message ('a LoRA'): its text in the person's language, and `english` for logs."""

    english: str

    def __new__(cls, template: str, **fields: Any) -> Phrase:
        made = super().__new__(cls, say(template, **fields))
        made.english = template.format(**in_english(fields))
        return made


def in_english(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a message, phrases among them in English."""
    return {name: value.english if isinstance(value, Phrase) else value for name, value in fields.items()}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: a template with named fields, and where it belongs.

    `where` names the setting (`method.rank`) or the file it concerns, for doors that show the message there.
    A warning lets the run go on, unless the job is `strict`.
    """

    template: str
    fields: dict[str, Any] = field(default_factory=dict)
    where: str = ""
    warning: bool = False

    def __str__(self) -> str:
        return say(self.template, **self.fields)

    @property
    def english(self) -> str:
        """The sentence for logs, whatever the person's language."""
        return self.template.format(**in_english(self.fields))


class AprendizError(Exception):
    """A message for a person: what, the value, where, the remedy."""

    def __init__(self, template: str, *, where: str = "", **fields: Any) -> None:
        super().__init__(template)
        self.problem = Problem(template, fields, where)

    def __str__(self) -> str:
        return str(self.problem)

    @property
    def problems(self) -> list[Problem]:
        """What is wrong, as a list of one (several: `ProblemsError`)."""
        return [self.problem]


class SettingsError(AprendizError):
    """A value, a name or a combination of settings."""


class DatasetError(AprendizError):
    """Pictures, captions, masks, or the folder they are in."""


class ModelError(AprendizError):
    """A base, a LoRA or another file of weights."""


class DeviceError(AprendizError):
    """A device that is not there, or memory that does not do."""


class RunError(AprendizError):
    """A run's folder, its lock or its disk."""


class TrainingError(AprendizError):
    """Training cannot go on."""


class ProblemsError(AprendizError):
    """Several problems at once: nobody should wait two minutes to learn of a second typo."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__(problems[0].template, where=problems[0].where, **problems[0].fields)
        self._problems = list(problems)

    def __str__(self) -> str:
        return "\n".join(str(problem) for problem in self._problems)

    @property
    def problems(self) -> list[Problem]:
        return list(self._problems)
