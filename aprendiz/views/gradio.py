"""The page in a host's Gradio (3.41 to 6), which is handed in as `gr`: one element, in which `page.js` draws everything.

Why not Gradio's components: `docs/decisions/0007-the-page-draws-its-own-settings.md`.
"""

from __future__ import annotations

import html
from typing import Any

from ..texts import say


def build(gr: Any) -> None:
    """The page, inside a `gr.Blocks` that the host has opened."""
    gr.HTML(f'<div id="aprendiz"><p>{html.escape(say("Opening the page"))}</p></div>')
