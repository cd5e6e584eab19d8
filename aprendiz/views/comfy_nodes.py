"""The nodes that ComfyUI shows, as data: titles, inputs, outputs. The shell in `nodes/` builds the host's own objects from this.

Ids never change: saved graphs name them. A training node appears for each method there is. Standard library only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from .. import registry
from ..settings import SECTIONS, BaseSettings, DataSettings, SampleSettings
from ..texts import translations
from . import results
from .comfy import LARGEST, Input, inputs, only, section_inputs, word

BASE, DATASET, OPTIONS, LORAS = "APRENDIZ_BASE", "APRENDIZ_DATASET", "APRENDIZ_DATASET_OPTIONS", "APRENDIZ_LORAS"
WAIT, BACKGROUND = "wait", "background"
# What ComfyUI calls the folder for each kind of result.
FOLDERS = {"lora": "loras", "embedding": "embeddings", "controlnet": "controlnet", "hypernetwork": "hypernetworks",
           "checkpoint": "checkpoints"}
TEACHES = {
    "lora": word("Teaches a subject or a style from a handful of pictures on. The result is a LoRA: a small file that works "
                 "beside the base in every program."),
    "textual_inversion": word("Teaches one new word for what the pictures show; the base itself stays as it is. The file has a "
                              "few kB, and a prompt calls it as embedding:name."),
    "pivotal": word("Teaches a word and a LoRA together: the word calls it, the LoRA draws it truer than a word alone can."),
    "controlnet": word("Teaches a ControlNet: drawing along a second picture, such as edges. A real one takes thousands of "
                       "pictures and hours on a card."),
}
HERE = ("path", "trigger", "resolution", "class_word")  # of the pictures' settings: those of the dataset nodes themselves


@dataclass(frozen=True)
class Output:
    """One output of a node. id: never changed. kind: the host's type. listed: a list of values, one after the other."""

    id: str
    kind: str
    tooltip: str


@dataclass(frozen=True, kw_only=True)
class Node:
    """One node. about, more: what its help page begins with. named: fills {method} of the title. method: of a training node."""

    id: str
    title: str
    about: str
    category: str
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...] = ()
    ends: bool = False
    method: str = ""
    named: str = ""
    more: str = ""

    def title_in(self, language: str = "en") -> str:
        """The title as it is shown."""
        known = translations(language)
        return known.get(self.title, self.title).format(method=known.get(self.named, self.named))

    def about_in(self, language: str = "en") -> list[str]:
        """What it is, a paragraph each."""
        return [translations(language).get(text, text) for text in (self.about, self.more) if text]

    @property
    def widgets(self) -> list[Input]:
        """The inputs that hold values, in the order in which graphs save them."""
        return [one for one in self.inputs if one.is_widget]

    @property
    def branches(self) -> dict[str, list[Input]]:
        """The lists of choices, by their ids, that other inputs depend on: only some choices have these at all.

        The default is their first choice: hosts with dynamic inputs begin there.
        """
        lists = {one.id: one for one in self.inputs if isinstance(one.choices, tuple) and one.default == one.choices[0]}
        found: dict[str, list[Input]] = {}
        for one in self.inputs:
            if one.when is not None and one.when[0] in lists:
                found.setdefault(one.when[0], []).append(one)
        return found


@cache
def nodes() -> dict[str, Node]:
    """Every node by its id."""
    return {node.id: node for node in (*_sources(), *_training(), *_drawing())}


def node_id(method: str) -> str:
    """The training node of a method: 'AprendizTrainTextualInversion'."""
    return "AprendizTrain" + "".join(part.capitalize() for part in method.split("_"))


def _socket(id: str, kind: str, tooltip: str, optional: bool = False) -> Input:
    return Input(id=id, kind=kind, tooltip=tooltip, optional=optional)


def _elsewhere() -> Input:
    return Input(id="elsewhere", kind="STRING", default="", advanced=True, tooltip=word(
        "A file or folder outside the lists, by its full path; it takes the place of what is chosen above."))


def _sources() -> Iterator[Node]:
    """What is taught, and from what."""
    base = (Output("base_model", BASE, word("The model to teach, or to draw with.")),)
    own = section_inputs("base", ("path",))
    yield Node(id="AprendizBase", title=word("Base model"), category="Aprendiz", outputs=base,
               about=word("Chooses the model that is taught: the small one that is built in, a checkpoint, or a diffusers "
                          "folder. It is not loaded here: the training opens it in a process of its own."),
               inputs=(*only(BaseSettings, "base", ("path",)), _elsewhere(), *own))
    yield Node(id="AprendizLoadMicro", title=word("Load micro"), category="Aprendiz",
               about=word("The small model that is built in, for the host's own nodes: it draws simple shapes at 128 pixels in a "
                          "second, needs no download, and everything can be tried with it."),
               inputs=(),
               outputs=(Output("model", "MODEL", word("Its network.")), Output("clip", "CLIP", word("Its text encoder.")),
                        Output("vae", "VAE", word("Its VAE.")), *base))
    said = (Output("dataset", DATASET, word("The pictures, for a training node.")),
            Output("pictures", "IMAGE", word("The pictures as they are seen, small.")),
            Output("report", "STRING", word("What was found, and what is wrong with it.")),
            Output("count", "INT", word("How many pictures there are.")))
    options = _socket("options", OPTIONS, word("More about the pictures, from a Dataset options node."), optional=True)
    rest = ("trigger", "resolution", "class_word")
    yield Node(id="AprendizDatasetFolder", title=word("Dataset from folder"), category="Aprendiz", ends=True, outputs=said,
               about=word("A folder of pictures with a caption beside each (name.txt). Everything that is wrong with it is told "
                          "at once."),
               inputs=(replace(only(DataSettings, "data", ("path",))[0], id="folder", tooltip=word(
                           "The folder with the pictures: its full path, or its name below ComfyUI's input folder. example:fish "
                           "draws pictures to try with.")), *only(DataSettings, "data", rest),
                       options))
    yield Node(id="AprendizDatasetImages", title=word("Dataset from images"), category="Aprendiz", ends=True, outputs=said,
               about=word("Pictures that come from the graph, with a caption for each. They are written into the run's own "
                          "folders, so that the training can read them."),
               inputs=(_socket("images", "IMAGE", word("The pictures to learn from.")),
                       Input(id="captions", kind="STRING", default="", multiline=True,
                             tooltip=word("One caption a line, in the order of the pictures; a single line is for all of them.")),
                       *only(DataSettings, "data", rest), options))
    yield Node(id="AprendizDatasetOptions", title=word("Dataset options"), category="Aprendiz",
               about=word("How pictures are cropped, mirrored, repeated and captioned. What is not changed here has its "
                          "default."),
               inputs=tuple(replace(one, advanced=False) for one in inputs(DataSettings, "data", HERE)),
               outputs=(Output("options", OPTIONS, word("For a dataset node.")),))


def _training() -> Iterator[Node]:
    """One node a method. What a LoRA loader takes is applied to MODEL and CLIP; what a prompt calls is handed on as its word."""
    for name, method in registry.methods().items():
        every = [one for section in SECTIONS if section not in ("base", "data") for one in section_inputs(section)]
        taken = {one.id for one in every}
        own = [replace(one, id=f"method_{one.id}") if one.id in taken else one for one in inputs(method.Settings, "method")]
        settings = [*own, *every]
        ordered = [*(one for one in settings if not one.advanced), *(one for one in settings if one.advanced)]
        kinds = results.files(name, Path("name.safetensors"))
        yield Node(
            id=node_id(name), title=word("Train {method}"), named=method.title, category="Aprendiz", ends=True, method=name,
            about=TEACHES.get(name, word("Teaches the base what the pictures show.")),
            more=word("Connect a base and a dataset, and queue. It runs in a process of its own; interrupting stops it with "
                      "everything saved, and queueing the same graph again goes on from there."),
            inputs=(_socket("base", BASE, word("The model to teach.")),
                    _socket("dataset", DATASET, word("The pictures to learn from.")),
                    *(_tuned_inputs() if "lora" in kinds else ()),
                    Input(id="when", kind="COMBO", choices=(WAIT, BACKGROUND), default=WAIT, tooltip=word(
                        "Wait: the graph goes on when the training has finished. Background: the queue stays free; queue again "
                        "afterwards for the result.")),
                    *ordered),
            outputs=tuple(_learned(kinds)))


def _tuned_inputs() -> Iterator[Input]:
    yield _socket("model", "MODEL", word("Where what was learned is applied, for drawing in the same graph."), True)
    yield _socket("clip", "CLIP", word("Where what was learned of words is applied."), True)


def _learned(kinds: Collection[str]) -> Iterator[Output]:
    """The outputs of a training node whose method writes files of these kinds."""
    yield Output("file", "*", word("Name of the file that was learned, ready for a loader."))
    if "lora" in kinds:
        yield Output("lora", "LORA_MODEL", word("The LoRA's weights, for Save LoRA Weights."))
    yield Output("losses", "LOSS_MAP", word("The loss of each step, for Plot Loss Graph."))
    yield Output("samples", "IMAGE", word("The last sample pictures."))
    if "lora" in kinds:
        yield Output("tuned_model", "MODEL", word("The model with what was learned."))
        yield Output("tuned_clip", "CLIP", word("The text encoder with what was learned."))
    if "embedding" in kinds:
        yield Output("word", "STRING", word("What calls it in a prompt of any text encoder node: embedding:name."))


def _request() -> list[Input]:
    """What pictures that are drawn have in common."""
    drawn = only(SampleSettings, "samples", ("negative_prompt", "sampler", "sampler_steps", "guidance"))
    told = {"sampler": word("How pictures are drawn out of noise; ddim and euler suit every base.")}
    return [*(replace(one, section="", setting="", settings=None, advanced=False, tooltip=told.get(one.id, one.tooltip))
              for one in drawn),
            Input(id="width", kind="INT", default=0, min=0, max=8192, step=8,
                  tooltip=word("Width in pixels, a multiple of 8; time and memory grow with it. 0: the base's own.")),
            Input(id="height", kind="INT", default=0, min=0, max=8192, step=8,
                  tooltip=word("Height in pixels, a multiple of 8; time and memory grow with it. 0: the base's own."))]


def _control() -> list[Input]:
    """A ControlNet and how it is heard."""
    return [Input(id="control_net", kind="COMBO", choices="controlnet", default="", advanced=True, tooltip=word(
                "A ControlNet, which is shown the condition picture.")),
            Input(id="control_strength", kind="FLOAT", default=1.0, min=0, max=10, step=0.05, advanced=True, tooltip=word(
                "How much it counts: 0 not at all, 1 fully.")),
            Input(id="control_start", kind="FLOAT", default=0.0, min=0, max=1, step=0.01, advanced=True, tooltip=word(
                "From which share of the steps on it is heard; 0: from the first.")),
            Input(id="control_end", kind="FLOAT", default=1.0, min=0, max=1, step=0.01, advanced=True, tooltip=word(
                "Up to which share of the steps it is heard. Below 1 the last steps, which draw detail, are free."))]


def _drawing() -> Iterator[Node]:
    """Drawing with any base, and looking at what came of it."""
    base = _socket("base", BASE, word("The model to draw with."))
    stack = _socket("loras", LORAS, word("LoRAs to draw with, from a LoRA stack node."), optional=True)
    yield Node(id="AprendizLoraStack", title=word("LoRA stack"), category="Aprendiz",
               about=word("A LoRA and its weight, for Generate and Latent walk; several are chained."),
               inputs=(_socket("file", "*", word("Name of a LoRA from a training node, in place of the list."), True),
                       Input(id="lora", kind="COMBO", choices="loras", default="", tooltip=word("The LoRA.")),
                       Input(id="weight", kind="FLOAT", default=1.0, min=-10, max=10, step=0.05, tooltip=word(
                           "How much it counts: 0 not at all, 1 fully.")), stack),
               outputs=(Output("stack", LORAS, word("For Generate, Latent walk or the next LoRA stack.")),))
    yield Node(id="AprendizGenerate", title=word("Generate"), category="Aprendiz",
               about=word("Draws with any base that can be taught, diffusers folders and micro included, as the samples of a "
                          "training are drawn. An embedding is called in the prompt by its name: embedding:name."),
               inputs=(base, stack, _socket("image", "IMAGE", word("A picture to start from."), True),
                       _socket("mask", "MASK", word("White where that picture may change."), True),
                       _socket("control_image", "IMAGE", word("The condition picture that a ControlNet is shown."), True),
                       Input(id="prompt", kind="STRING", default="", multiline=True, tooltip=word("What to draw.")),
                       Input(id="seed", kind="INT", default=0, min=0, max=LARGEST, control=True, tooltip=word(
                           "The pictures' noise follows from it; several pictures count up.")),
                       Input(id="count", kind="INT", default=1, min=1, max=64, tooltip=word(
                           "How many pictures; each takes its time.")),
                       *_request(),
                       Input(id="strength", kind="FLOAT", default=0.75, min=0, max=1, step=0.01, tooltip=word(
                           "How much of the given picture is redone: 0 leaves it, 1 keeps little of it.")), *_control()),
               outputs=(Output("images", "IMAGE", word("The pictures.")),))
    yield Node(id="AprendizWalk", title=word("Latent walk"), category="Aprendiz", ends=True,
               about=word("A moving picture that goes from prompt to prompt and from seed to seed. An embedding is called in the "
                          "prompts by its name: embedding:name."),
               inputs=(base, stack,
                       Input(id="prompts", kind="STRING", default="", multiline=True,
                             tooltip=word("The prompts to go through, one a line.")),
                       Input(id="seeds", kind="STRING", default="0",
                             tooltip=word("The noise of each stop: whole numbers, with commas.")),
                       Input(id="frames", kind="INT", default=24, min=2, max=10000,
                             tooltip=word("How many frames there are in all. Each is drawn, so the time grows with them.")),
                       Input(id="frames_per_second", kind="FLOAT", default=12.0, min=0.5, max=60, step=0.5,
                             tooltip=word("How fast it plays.")),
                       Input(id="format", kind="COMBO", choices=("webp", "gif", "mp4"), default="webp",
                             tooltip=word("The file that is written into the output folder: webp is small, gif shows "
                                          "everywhere, mp4 is smallest, and gives no pictures to the graph.")), *_request()),
               outputs=(Output("pictures", "IMAGE", word("The frames, in order.")),))
    yield Node(id="AprendizGrid", title=word("Before/after grid"), category="Aprendiz",
               about=word("Pairs of pictures side by side with their labels: the base and what it has learned, same prompts and "
                          "seeds."),
               inputs=(_socket("before", "IMAGE", word("Pictures of the base.")),
                       _socket("after", "IMAGE", word("Pictures after training, in the same order.")),
                       Input(id="labels", kind="STRING", default="", multiline=True,
                             tooltip=word("A label for each pair, one a line.")),
                       Input(id="heading", kind="STRING", default="", tooltip=word("What stands above it all."))),
               outputs=(Output("grid", "IMAGE", word("The grid.")),))
    yield Node(id="AprendizInspect", title=word("Inspect file"), category="Aprendiz", ends=True,
               about=word("What a file of weights is, and how much of it each program loads."),
               inputs=(_socket("file", "*", word("Name of a LoRA from a training node, in place of the list."), True),
                       Input(id="lora", kind="COMBO", choices="loras", default="", tooltip=word("The LoRA.")), _elsewhere()),
               outputs=(Output("report", "STRING", word("The table as text.")),))
