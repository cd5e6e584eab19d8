"""Node specifications as ComfyUI's own objects. Arguments that a version of ComfyUI lacks are left off."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

from ..aprendiz.settings import BaseSettings
from ..aprendiz.views.comfy_nodes import Input, Node, nodes
from . import host

NOTHING = ""  # of a list of files: none is chosen


class AnyKind(str):
    """A type that fits every socket: what a list of files gives is of no type that has a name."""

    def __ne__(self, other: object) -> bool:
        return False


def build(io: Any, id: str) -> Any:
    """The schema of a node."""
    node = nodes()[id]
    return made(io.Schema, node_id=node.id, display_name=node.title_in("en"), category=node.category,
                description=" ".join(node.about_in()), inputs=inputs(io, node),
                outputs=[socket(io, one.kind).Output(**output(one)) for one in node.outputs],
                hidden=hidden(io, node), is_output_node=node.ends, search_aliases=["aprendiz", "training", "lora"])


def inputs(io: Any, node: Node) -> list[Any]:
    """The inputs of a node. Where the host has dynamic inputs, a list of choices brings those that belong to the choice."""
    branches = node.branches if hasattr(io, "DynamicCombo") else {}
    inner = {one.id for branch in branches.values() for one in branch}
    return [dynamic(io, one, branches[one.id]) if one.id in branches else widget(io, one) for one in node.inputs
            if one.id not in inner]


def dynamic(io: Any, one: Input, branch: list[Input]) -> Any:
    """A list of choices with the inputs that some of them have."""
    assert isinstance(one.choices, tuple)
    parts = [io.DynamicCombo.Option(choice, [widget(io, inner) for inner in branch if inner.when and choice in inner.when[1]])
             for choice in one.choices]
    return made(io.DynamicCombo.Input, id=one.id, tooltip=one.tooltip, display_name=one.label, optional=True, options=parts)


def hidden(io: Any, node: Node) -> list[Any]:
    """What a node is told besides its inputs: who it is; the graph, which a training's files will carry, and in which older and
    newer versions of ComfyUI name what belongs to a choice differently."""
    told = [io.Hidden.unique_id]
    if node.method or node.branches:
        told.append(io.Hidden.prompt)
    return [*told, io.Hidden.extra_pnginfo] if node.method else told


def made(kind: Any, **values: Any) -> Any:
    """An object of ComfyUI's, without the arguments that this version does not take."""
    takes = _takes(kind)
    return kind(**(values if takes is None else {name: value for name, value in values.items() if name in takes}))


@cache
def _takes(kind: Any) -> frozenset[str] | None:
    """The arguments of a type; None where it takes any."""
    told = inspect.signature(kind).parameters
    return None if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in told.values()) else frozenset(told)


def socket(io: Any, kind: str) -> Any:
    """ComfyUI's type of this name, or one of our own."""
    return io.Custom(AnyKind(kind) if kind == "*" else kind)


def output(one: Any) -> dict[str, Any]:
    """Arguments of an output."""
    return {"id": one.id, "display_name": one.id.replace("_", " "), "tooltip": one.tooltip}


def widget(io: Any, one: Input) -> Any:
    """One input."""
    shared: dict[str, Any] = {"id": one.id, "tooltip": one.tooltip, "display_name": one.label}
    if not one.is_widget:
        return socket(io, one.kind).Input(**shared, optional=one.optional)
    # Every widget is optional: a graph saved before a setting was there keeps working, with its default. Which are advanced is
    # not told to the host: our page part folds them, alike in every version, and leaves in sight what was changed.
    shared |= {"optional": True, "default": one.default}
    if one.kind == "BOOLEAN":
        return made(io.Boolean.Input, **shared)
    if one.kind == "COMBO":
        return made(io.Combo.Input, **shared, options=options(one))
    if one.kind == "STRING":
        return made(io.String.Input, **shared, multiline=one.multiline, dynamic_prompts=False)
    bounds = {"min": one.min, "max": one.max, "step": one.step or (1 if one.kind == "INT" else 0.01)}
    if one.kind == "INT":
        return made(io.Int.Input, **shared, **bounds, control_after_generate=one.control)
    return made(io.Float.Input, **shared, **bounds, round=False)


def options(one: Input) -> list[str]:
    """What a list offers; lists of files are read from the host each time they are asked for."""
    if isinstance(one.choices, tuple):
        return list(one.choices)
    if one.choices == "checkpoints":
        return list(dict.fromkeys([BaseSettings().path, *host.names("checkpoints"), *host.diffusers_folders()]))
    return [NOTHING, *host.names(str(one.choices))]


def node(id: str) -> Node:
    """The specification of a node."""
    return nodes()[id]
