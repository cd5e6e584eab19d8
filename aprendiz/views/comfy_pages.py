"""ComfyUI's texts of our nodes: `locales/` and the help pages in `web/docs/`, from the specifications and the translations.

    python -m aprendiz.views.comfy_pages

writes them anew; a test fails while a file differs. Standard library only: hosts import this.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ..knobs import kinds
from ..texts import LANGUAGES, label, translations
from .comfy import Input, word
from .comfy_nodes import BASE, DATASET, LORAS, OPTIONS, Node, nodes
from .panel import SETTINGS, TEXTS

ROOT = Path(__file__).resolve().parents[2]
KINDS = {BASE: word("base"), DATASET: word("dataset"), OPTIONS: word("dataset options"), LORAS: "LoRAs", "*": word("name"),
         "STRING": word("text"), "BOOLEAN": word("yes or no"), "COMBO": word("a file of the list"), "INT": word("whole number")}
MANY = 1e6  # from here on a bound says nothing
CATEGORIES = (word("Training"), word("Page"))  # of the settings panel
HEADS = {"inputs": word("Inputs"), "outputs": word("Outputs"), "name": word("Name"), "takes": word("Takes"),
         "default": word("Default"), "does": word("What it is")}
FOLDED = word("What stands in bold is always in sight, the rest behind *All settings*.")
OFF = word("0 or an empty field means off.")


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
        "display_name": node.title_in(language), "description": " ".join(node.about_in(language)),
        "inputs": named,
        "outputs": {str(i): {"name": label(one.id.replace("_", " "), language), "tooltip": _in(one.tooltip, language)}
                    for i, one in enumerate(node.outputs)},
    }


def tooltip(one: Input, language: str) -> str:
    """What an input is; in another language also the name by which messages and job files call it."""
    told = _in(one.tooltip, language)
    called = one.section if one.setting == "path" else one.setting  # as in a job file: `data`, not `data.path`
    return f"{told} ({called})" if language != "en" and called else told


def page(node: Node, language: str) -> str:
    """The help page of a node."""
    heads = {key: _in(head, language) for key, head in HEADS.items()}
    parts = [f"# {node.title_in(language)}", *node.about_in(language)]
    if node.inputs:
        names = [label(one.label, language) for one in node.inputs]
        rows = [(name if one.advanced else f"**{name}**", takes(one, language), shown(one), tooltip(one, language))
                for name, one in zip(names, node.inputs)]
        notes = [FOLDED] * any(one.advanced for one in node.inputs) + [OFF] * any(may_be_off(one) for one in node.inputs)
        parts += [f"## {heads['inputs']}", *([" ".join(_in(note, language) for note in notes)] if notes else []),
                  _table(tuple(heads[key] for key in ("name", "takes", "default", "does")), rows)]
    if node.outputs:
        made = [(label(one.id.replace("_", " "), language), kind(one.kind, language), _in(one.tooltip, language))
                for one in node.outputs]
        parts += [f"## {heads['outputs']}", _table((heads["name"], heads["takes"], heads["does"]), made)]
    return "\n\n".join(parts) + "\n"


def takes(one: Input, language: str) -> str:
    """Choices, bounds, or the kind of value."""
    if isinstance(one.choices, tuple):
        return ", ".join(f"`{choice}`" for choice in one.choices)
    if one.min is not None and one.max is not None:
        return f"{one.min:g} - {one.max:g}" if one.max < MANY else f"≥ {one.min:g}"
    return kind(one.kind, language)


def kind(type: str, language: str) -> str:
    """The type of a value in words, ComfyUI's own types by their names."""
    return _in(KINDS.get(type, type), language)


def shown(one: Input) -> str:
    """What a widget holds when nothing was changed; nothing for sockets and empty fields."""
    if one.kind == "BOOLEAN":
        return f"`{str(one.default).lower()}`"
    if isinstance(one.default, float):
        return f"`{one.default:g}`"
    return f"`{one.default}`" if one.is_widget and one.default not in ("", None) else ""


def may_be_off(one: Input) -> bool:
    """Whether a number's 0 or an empty text stands for off."""
    return one.settings is not None and kinds(one.settings)[one.setting][1] and one.kind in ("INT", "FLOAT", "STRING")


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
