"""What ComfyUI asks for: the list of nodes. Each is a class without state whose schema is the specification's."""

from __future__ import annotations

import functools
from typing import Any

from comfy_api.latest import ComfyExtension, io

from ..aprendiz import registry
from ..aprendiz.views.comfy import asked_flat, flat, job_values
from ..aprendiz.views.comfy_nodes import BACKGROUND, node_id
from . import draw, host, micro, routes, runs, schema, sources, train


def ours(node: Any) -> Any:
    """A node that tells what it has to tell in the language of ComfyUI's page, and during which ComfyUI does not draw."""
    work = node.execute.__func__

    @functools.wraps(work)
    def execute(cls: Any, *given: Any, **named: Any) -> Any:
        host.follow_language()
        with host.own_work():
            return work(cls, *given, **named)

    node.execute = classmethod(execute)
    return node


@ours
class AprendizBase(io.ComfyNode):
    """Chooses the model that is taught."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizBase")

    @classmethod
    def execute(cls, **given: Any) -> Any:
        return io.NodeOutput(sources.base_values(given))


@ours
class AprendizLoadMicro(io.ComfyNode):
    """The embedded base for stock nodes."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizLoadMicro")

    @classmethod
    def execute(cls) -> Any:
        return io.NodeOutput(*micro.load(), {"path": "micro"})


@ours
class AprendizDatasetFolder(io.ComfyNode):
    """A folder of pictures with captions."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizDatasetFolder")

    @classmethod
    def execute(cls, folder: str = "", options: Any = None, **given: Any) -> Any:
        return dataset_output(cls, "AprendizDatasetFolder", folder.strip(), options, given)

    @classmethod
    def fingerprint_inputs(cls, folder: str = "", **given: Any) -> Any:
        return sources.fingerprint(folder)


@ours
class AprendizDatasetImages(io.ComfyNode):
    """Pictures of the graph with captions."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizDatasetImages")

    @classmethod
    def execute(cls, images: Any, captions: str = "", options: Any = None, **given: Any) -> Any:
        folder = sources.write_images(images, captions)
        return dataset_output(cls, "AprendizDatasetImages", str(folder), options, given)


def dataset_output(node: Any, id: str, folder: str, options: Any, given: dict[str, Any]) -> Any:
    """The outputs of both dataset nodes, with the pictures and the report shown on the node."""
    values, images, report, count, small = sources.dataset(id, folder, options, given)
    shown = {**sources.preview(small, str(node.hidden.unique_id)), "text": [report]}
    return io.NodeOutput(values, images, report, count, ui=shown)


@ours
class AprendizDatasetOptions(io.ComfyNode):
    """How pictures are treated."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizDatasetOptions")

    @classmethod
    def execute(cls, **given: Any) -> Any:
        id = "AprendizDatasetOptions"
        return io.NodeOutput(job_values(schema.node(id).inputs, whole(cls, id, given)).get("data", {}))


def whole(node: Any, id: str, given: dict[str, Any]) -> dict[str, Any]:
    """A node's values by the ids of its inputs, those too that another version of ComfyUI names otherwise."""
    queued = (node.hidden.prompt or {}).get(str(node.hidden.unique_id), {}).get("inputs", {})
    return {**asked_flat(schema.node(id).inputs, queued), **flat(given)}


def training_node(method: str) -> Any:
    """The training node of a method."""
    id = node_id(method)

    @ours
    class Train(io.ComfyNode):
        @classmethod
        def define_schema(cls) -> Any:
            return schema.build(io, id)

        @classmethod
        def execute(cls, base: Any, dataset: Any, model: Any = None, clip: Any = None, **given: Any) -> Any:
            graph = {"workflow": (cls.hidden.extra_pnginfo or {}).get("workflow"), "prompt": cls.hidden.prompt}
            run, finished = train.train(id, cls.hidden.unique_id, base, dataset, whole(cls, id, given), graph)
            values = train.result(id, run, model, clip) if finished else train.nothing_yet(id)
            return io.NodeOutput(*values, ui={"aprendiz": [runs.shown(run, train.graph_id(graph))]})

        @classmethod
        def fingerprint_inputs(cls, when: str = "", **given: Any) -> Any:
            # In the background the outputs come when the run has finished and the graph is queued again.
            return runs.states() if when == BACKGROUND else ()

    Train.__name__ = Train.__qualname__ = id
    Train.__doc__ = f"Trains: {registry.methods()[method].title}."
    return Train


@ours
class AprendizLoraStack(io.ComfyNode):
    """A LoRA and its weight."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizLoraStack")

    @classmethod
    def execute(cls, lora: str = "", weight: float = 1.0, file: Any = None, loras: Any = None) -> Any:
        found = draw.lora_file(str(file or lora))
        return io.NodeOutput([*(loras or []), (str(found), weight)])


@ours
class AprendizGenerate(io.ComfyNode):
    """Draws with any base."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizGenerate")

    @classmethod
    def execute(cls, base: Any, loras: Any = None, image: Any = None, mask: Any = None, control_image: Any = None,
                **given: Any) -> Any:
        values = {**defaults("AprendizGenerate"), **given}
        shown = {"image": image, "mask": mask, "control_image": control_image}
        return io.NodeOutput(draw.generate(base, loras or [], values, shown, cls.hidden.unique_id))


@ours
class AprendizWalk(io.ComfyNode):
    """A moving picture from prompt to prompt."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizWalk")

    @classmethod
    def execute(cls, base: Any, loras: Any = None, **given: Any) -> Any:
        frames, file = draw.walk(base, loras or [], {**defaults("AprendizWalk"), **given}, cls.hidden.unique_id)
        shown = {"images": [{"filename": file.name, "subfolder": "", "type": "output"}], "animated": (True,)}
        return io.NodeOutput(host.blocked() if frames is None else frames, ui=shown)


@ours
class AprendizGrid(io.ComfyNode):
    """Pairs of pictures with their labels."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizGrid")

    @classmethod
    def execute(cls, before: Any, after: Any, labels: str = "", heading: str = "") -> Any:
        return io.NodeOutput(draw.grid(before, after, labels, heading))


@ours
class AprendizInspect(io.ComfyNode):
    """What a file of weights is."""

    @classmethod
    def define_schema(cls) -> Any:
        return schema.build(io, "AprendizInspect")

    @classmethod
    def execute(cls, lora: str = "", elsewhere: str = "", file: Any = None) -> Any:
        report = draw.inspect(str(elsewhere or "").strip() or str(file or lora))
        host.Display(cls.hidden.unique_id).say(report)
        return io.NodeOutput(report, ui={"text": [report]})


def defaults(id: str) -> dict[str, Any]:
    """What the widgets of a node hold when nothing was changed: a graph saved by an older version may lack some."""
    return {one.id: one.default for one in schema.node(id).widgets}


class AprendizExtension(ComfyExtension):
    """The nodes and the routes."""

    async def on_load(self) -> None:
        routes.register()

    async def get_node_list(self) -> list[Any]:
        routes.register()  # older versions do not call on_load
        return [AprendizBase, AprendizLoadMicro, AprendizDatasetFolder, AprendizDatasetImages, AprendizDatasetOptions,
                *(training_node(method) for method in registry.methods()), AprendizLoraStack, AprendizGenerate, AprendizWalk,
                AprendizGrid, AprendizInspect]
