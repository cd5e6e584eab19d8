"""ComfyUI's texts of our nodes: `locales/` and the help pages in `web/docs/`, from the specifications and the translations.

    python -m aprendiz.views.comfy_pages

writes them anew; a test fails while a file differs. Standard library only: hosts import this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..texts import LANGUAGES, label, translations
from .comfy import Input, word
from .comfy_nodes import BASE, DATASET, LORAS, OPTIONS, Node, nodes
from .panel import SETTINGS, TEXTS

ROOT = Path(__file__).resolve().parents[2]
KINDS = {BASE: "base", DATASET: "dataset", OPTIONS: "dataset options", LORAS: "LoRAs", "*": "name"}
CATEGORIES = (word("Training"), word("Page"))  # of the settings panel
HEADS = {"inputs": word("Inputs"), "outputs": word("Outputs"), "name": word("Name"), "takes": word("Takes"),
         "does": word("What it is")}


def files() -> Iterator[tuple[Path, str]]:
    """Every file with its content."""
    for language in LANGUAGES:
        folder = ROOT / "locales" / language
        yield folder / "nodeDefs.json", _json({id: definition(node, language) for id, node in nodes().items()})
        yield folder / "commands.json", _json({
            "aprendiz_showRuns": {"label": _in(TEXTS["show_runs"], language)},
            "aprendiz_stop": {"label": _in(TEXTS["stop_all"], language)}})
        yield folder / "settings.json", _json({
            name.replace(".", "_"): {"name": _in(label, language)} for name, label in SETTINGS.items()})
        yield folder / "main.json", _json({"settingsCategories": {
            "Aprendiz": "Aprendiz", **{name: _in(name, language) for name in CATEGORIES}}})
        for id, node in nodes().items():
            name = f"{id}.md" if language == "en" else f"{id}/{language}.md"
            yield ROOT / "web" / "docs" / name, page(node, language)


def definition(node: Node, language: str) -> dict[str, Any]:
    """A node's texts as ComfyUI's locale files have them."""
    named = {one.id: {"name": label(one.label, language), "tooltip": tooltip(one, language)} for one in node.inputs}
    # Where the host has dynamic inputs, `loss.huber_delta` is looked up under this name.
    named |= {f"{parent}_{one.id}": named[one.id] for parent, branch in node.branches.items() for one in branch}
    return {
        "display_name": node.title_in(language), "description": _in(node.about, language),
        "inputs": named,
        "outputs": {str(i): {"name": label(one.id.replace("_", " "), language), "tooltip": _in(one.tooltip, language)}
                    for i, one in enumerate(node.outputs)},
    }


def tooltip(one: Input, language: str) -> str:
    """What an input is; in another language also the name by which messages and job files call it."""
    told = _in(one.tooltip, language)
    return f"{told} ({one.setting})" if language != "en" and one.setting else told


def page(node: Node, language: str) -> str:
    """The help page of a node."""
    heads = {key: _in(head, language) for key, head in HEADS.items()}
    parts = [f"# {node.title_in(language)}", _in(node.about, language)]
    if node.inputs:
        names = [label(one.label, language) for one in node.inputs]
        rows = [(name if one.advanced else f"**{name}**", takes(one), tooltip(one, language))
                for name, one in zip(names, node.inputs)]
        parts += [f"## {heads['inputs']}", _table((heads["name"], heads["takes"], heads["does"]), rows)]
    if node.outputs:
        rows = [(label(one.id.replace("_", " "), language), KINDS.get(one.kind, one.kind), _in(one.tooltip, language))
                for one in node.outputs]
        parts += [f"## {heads['outputs']}", _table((heads["name"], heads["takes"], heads["does"]), rows)]
    return "\n\n".join(parts) + "\n"


def takes(one: Input) -> str:
    """Choices, bounds, or the kind of value."""
    if isinstance(one.choices, tuple):
        return ", ".join(f"`{choice}`" for choice in one.choices)
    if one.min is not None and one.max is not None:
        return f"{one.min:g} - {one.max:g}"
    return KINDS.get(one.kind, one.kind)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _in(template: str, language: str) -> str:
    return translations(language).get(template, template)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"


def main() -> None:
    """Write every file, and remove help pages of nodes that are no longer there."""
    written = dict(files())
    for file in (ROOT / "web" / "docs").rglob("*.md"):
        if file not in written:
            file.unlink()
    for file, content in written.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main()
