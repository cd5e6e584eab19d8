"""The page's texts for the localisation of AUTOMATIC1111, Forge and reForge: `localizations/`.

    python -m aprendiz.views.webui_texts

writes them anew; a test fails while they differ from the page. A host joins the files of one name from all extensions, and puts
a translation in place of each text of its page that is a key; ours join the usual packs of Spanish and Brazilian Portuguese.
The page speaks its person's language by itself; the form's texts stand here for extensions that show two languages at once. Its
other words do not: some are so common that they would be put in place of the host's own. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ..texts import label, translations
from . import form
from .words import FOLDERS, MODEL, OUTPUT

FOLDER = Path(__file__).resolve().parents[2] / "localizations"
NAMES = {"es_ES": "es", "pt_BR": "pt-BR"}  # as hosts' packs are called: our language


def texts() -> Iterator[str]:
    """What stands on the page and in the settings, in English: the language of this process must be that."""
    yield from form.texts()
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
