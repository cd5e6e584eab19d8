"""The schema as a page of the docs: `docs/settings.md`.

    python -m aprendiz.views.docs

writes it anew; a test fails while the page differs from the schema. Standard library only: hosts import this.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import registry
from ..knobs import Knob, kind_words, kinds
from ..settings import SECTIONS
from .flags import Flag, flags, of_method

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

OPENING = """\
# Settings

Every setting, in the sections of a job file. This page is written from the schema: `make docs`.

A job is a TOML or JSON file, or flags, or both:

```toml
base = "micro"
data = "my-vase"

[method]
name = "lora"
rank = 8

[training]
steps = 400
```

```
python -m aprendiz train job.toml --steps 600 --set method.rank=16
```

A path is looked for in the current folder first, then in the job file's own.

`base = "micro"` stands for `base.path`, `data = "folder"` for `data.path`, `method = "lora"` for `method.name`. A name that is
unique may stand without its section. *Off* is `null` in JSON; in TOML the setting is left out; as a flag it is `off`, where a
number is asked for.
`python -m aprendiz check job.toml` says all that is wrong with a job, before anything is loaded.
"""


def page() -> str:
    """The whole page, in English."""
    by_section: dict[str, list[Flag]] = {}
    for flag in flags().values():
        by_section.setdefault(flag.section, []).append(flag)
    parts = [OPENING]
    for section, settings in SECTIONS.items():
        parts.append(f"## {section}\n\n{first_line(settings)}\n\n{table(by_section[section])}")
    for name, method in registry.methods().items():
        about = f"{method.title}. {first_line(method.Settings)} `method.name = \"{name}\"`"
        parts.append(f"## method: {name}\n\n{about}\n\n{table(of_method(name))}")
    return "\n".join(parts)


def first_line(settings: type) -> str:
    """What a section is about."""
    return inspect.cleandoc(settings.__doc__ or "").splitlines()[0]


def table(section: list[Flag]) -> str:
    """One row a setting; those that matter most are bold."""
    rows = ["| setting | flag | default | takes | what it does |", "|---|---|---|---|---|"]
    return "\n".join([*rows, *map(row, section)]) + "\n"


def row(flag: Flag) -> str:
    """One setting."""
    name = f"**{flag.name}**" if flag.knob.level == "basic" else flag.name
    cells = (name, f"`{flag.flag}`", shown(default(flag)), takes(flag), flag.knob.help + only_if(flag.knob))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def default(flag: Flag) -> Any:
    """The value of a setting that is not given."""
    return next(field.default for field in dataclasses.fields(flag.settings) if field.name == flag.name)


def shown(value: Any) -> str:
    """A value as a person reads it."""
    if value is None:
        return "off"
    if value == "" or value == ():
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def takes(flag: Flag) -> str:
    """Choices, bounds, or what kind of value it is."""
    return ", ".join(bounds(flag))


def bounds(flag: Flag) -> Iterator[str]:
    """The kind of value, then what it is held within."""
    one = flag.knob
    if isinstance(one.choices, tuple):
        yield ", ".join(f"`{choice}`" for choice in one.choices)
        return
    if one.path:
        yield {"file": "a file", "folder": "a folder", "either": "a file or a folder"}[one.path]
        return
    types, _ = kinds(flag.settings)[flag.name]
    yield kind_words(flag.settings, flag.name, off=False)
    if bool in types:
        return
    low, high = (number(limit) for limit in (one.min, one.max))
    if low and high:
        yield f"{low} to {high}"
    elif low or high:
        yield f"at least {low}" if low else f"at most {high}"


def number(limit: float | None) -> str:
    """A bound without idle zeros; empty if there is none."""
    if limit is None:
        return ""
    return str(limit) if isinstance(limit, int) and limit < 1_000_000 else f"{limit:g}"


def only_if(one: Knob) -> str:
    """On which other setting it depends."""
    if one.when is None:
        return ""
    sibling, values = one.when
    return f" Only with {sibling} = {' or '.join(shown(value) for value in values)}."


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8", newline="\n")
