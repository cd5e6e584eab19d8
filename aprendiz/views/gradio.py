"""The page in a host's Gradio (3.41 to 6), which is handed in as `gr`: one element, in which `page.js` draws everything.

Why not Gradio's components: `docs/decisions/0007-the-page-draws-its-own-settings.md`.
"""

from __future__ import annotations

import html
import json
from typing import Any

from ..texts import say
from .words import words

EARLY = ("lost", "login", "refused")  # texts that the script needs where it cannot ask for texts


def build(gr: Any) -> None:
    """The page, inside a `gr.Blocks` that the host has opened."""
    known = words()
    early = html.escape(json.dumps({key: known[key] for key in EARLY}))
    gr.HTML(f'<div id="aprendiz" data-words="{early}"><p>{html.escape(say("Opening the page"))}</p></div>')
