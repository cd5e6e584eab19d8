"""Texts in a person's language: English templates are the keys, `es.json` and `pt-BR.json` the translations.

`labels.json` has the names of settings as they stand beside a field, where a door shows them in the person's language.

Standard library only: hosts import this.
"""

from __future__ import annotations

import json
import locale
import os
from functools import cache
from pathlib import Path
from typing import Any

LANGUAGES = ("en", "es", "pt-BR")


def language() -> str:
    """The language of this process: `APRENDIZ_LANGUAGE`, else the locale's, else English."""
    for name in ("APRENDIZ_LANGUAGE", "LC_ALL", "LC_MESSAGES", "LANG"):
        if os.environ.get(name):
            return nearest(os.environ[name])
    return nearest(locale.getlocale()[0] or "en")


def nearest(tag: str) -> str:
    """The language of ours that is nearest to a tag such as `pt_PT.UTF-8`, `es-419` or `Spanish_Spain`."""
    tag = tag.replace("_", "-").lower()
    if tag.startswith(("pt", "portuguese")):
        return "pt-BR"
    if tag.startswith(("es-", "spanish")) or tag == "es":
        return "es"
    return "en"


@cache
def translations(tag: str) -> dict[str, str]:
    """Template to template for one language; empty for English."""
    file = Path(__file__).with_name(f"{tag}.json")
    if not file.exists():
        return {}
    read: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return read


def label(name: str, to: str) -> str:
    """The name of a setting, an input or an output ('batch size') in a language; as it is where there is no other word."""
    return _labels().get(name, {}).get(to, name)


@cache
def _labels() -> dict[str, dict[str, str]]:
    read: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("labels.json").read_text(encoding="utf-8"))
    return read


def say(template: str, *, to: str | None = None, **fields: Any) -> str:
    """A template in the person's language (or in language `to`), its fields filled in."""
    return translations(to or language()).get(template, template).format(**fields)
