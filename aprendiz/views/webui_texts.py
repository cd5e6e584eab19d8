"""The page's texts for the localisation of AUTOMATIC1111, Forge and reForge: `localizations/`.

    python -m aprendiz.views.webui_texts

writes them anew; a test fails while they differ from the page. A host joins the files of one name from all extensions, and puts
a translation in place of each text of its page that is a key; ours join the usual packs of Spanish and Brazilian Portuguese.
What the page's own script draws is translated by its routes. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..texts import label, translations
from .desk import Desk
from .gradio import Page, PageHost
from .words import FOLDERS, MODEL, OUTPUT

FOLDER = Path(__file__).resolve().parents[2] / "localizations"
NAMES = {"es_ES": "es", "pt_BR": "pt-BR"}  # as hosts' packs are called: our language


class Part:
    """A component that is nowhere shown."""

    def __enter__(self) -> Part:
        return self

    def __exit__(self, *why: object) -> None:
        return None

    def click(self, *arguments: Any, api_name: Any = None, **more: Any) -> Part:
        """An event that never happens."""
        return self

    change = then = click


class Recorder:
    """Stands in for Gradio: remembers the texts that components are made with."""

    __version__ = "4.0"

    def __init__(self) -> None:
        self.texts: dict[str, None] = {}

    def __getattr__(self, kind: str) -> Any:
        def component(*arguments: Any, **settings: Any) -> Part:
            given = [settings.get(name) for name in ("label", "info", "value", "placeholder")] if kind != "HTML" else []
            for text in (*(arguments if kind in ("Accordion", "Button") else ()), *given, *settings.get("choices", ())):
                if isinstance(text, str) and text.strip():
                    self.texts[text] = None
            return Part()

        return component


def texts() -> Iterator[str]:
    """What stands on the page and in the settings, in English: the language of this process must be that."""
    recorder = Recorder()
    Page(recorder, PageHost(Desk(Path, list))).build()
    yield from recorder.texts
    yield from (str(OUTPUT), str(FOLDERS), str(MODEL))


def localization(language: str) -> dict[str, str]:
    """Text to translation, for what has one."""
    known, told = translations(language), {}
    for text in texts():
        name = label(text.lower(), language)
        word = known.get(text) or (name[0].upper() + name[1:] if name != text.lower() else text)
        if word != text:
            told[text] = word
    return told


def files() -> dict[Path, str]:
    """Every file, and what is to stand in it."""
    return {FOLDER / f"{name}.json": json.dumps(localization(language), indent=2, ensure_ascii=False) + "\n"
            for name, language in NAMES.items()}


if __name__ == "__main__":
    import os
    os.environ["APRENDIZ_LANGUAGE"] = "en"
    FOLDER.mkdir(exist_ok=True)
    for file, content in files().items():
        file.write_text(content, encoding="utf-8", newline="\n")
