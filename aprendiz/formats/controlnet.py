"""ControlNet files: diffusers' names, or the original ones (`control_model.`), which hosts read alike; `config.json` beside it.

    diffusers                              original
    controlnet_cond_embedding.conv_in      input_hint_block.0      (then blocks.N: 2 + 2 N, and conv_out)
    controlnet_down_blocks.N               zero_convs.N.0
    controlnet_mid_block                   middle_block_out.0
    down_blocks..., mid_block...           input_blocks..., middle_block...   as the U-Net's own
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AprendizError, ModelError, Problem, TrainingError
from . import container, metadata, names, recognise
from .weights import Shapes, Weights, open_weights, write_tensors
from .writing import make_folder, write_whole

if TYPE_CHECKING:
    from torch import Tensor, nn

    from ..families import Base, Family
    from ..settings import Job
    from .metadata import TrainingFacts

PREFIX = "control_model."
KIND = "aprendiz_control"  # in the metadata: what the condition pictures show
CONFIG = "config.json"
HINT = "controlnet_cond_embedding"


@dataclass(frozen=True)
class Opened:
    """A ControlNet file's branch, and what its condition pictures show ('' where the file does not say)."""

    branch: nn.Module
    kind: str


def control_metadata(job: Job, facts: TrainingFacts, kind: str) -> dict[str, str]:
    """A ControlNet's metadata at the level that the job asks for."""
    told = {name: value for name, value in metadata.lora_metadata(job, facts).items() if not name.startswith("ss_network_")}
    if "modelspec.architecture" in told:
        told["modelspec.architecture"] = told["modelspec.architecture"].rpartition("/")[0] + "/controlnet"
    return told | {KIND: kind}


# Writing


def write(file: Path, tensors: Mapping[str, Tensor], branch: Any, told: Mapping[str, str], *, layout: str = "diffusers",
          precision: str = "fp16") -> list[Path]:
    """Write a branch (its trained values in `tensors`) and its config.json, read it back and compare. The files written.

    Raises TrainingError for values that are no numbers or do not fit the precision, RunError where it cannot be written.
    """
    import torch
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[precision]
    stored = {}
    for name, tensor in {**branch.state_dict(), **tensors}.items():
        values = tensor.detach().to("cpu", dtype).contiguous()
        if not bool(torch.isfinite(values).all()):
            raise TrainingError("The weights of {module} are no numbers any more, or too large for {precision}, so no file was "
                                "written. Lower the "
                                "learning rate, and resume from the last good state.", module=name, precision=precision)
        stored[to_original(name) if layout == "original" else name] = values
    make_folder(file.parent)
    write_tensors(file, stored, told)
    back = open_weights(file)
    wrong = sorted(set(stored) ^ set(back.places))
    wrong = wrong or [name for name, values in stored.items() if not torch.equal(values, back.read(name))]
    if wrong:
        raise ModelError("{file} was written, but what was read back is something else ({what}). Check the disk, and save again.",
                         file=file.name, what=", ".join(wrong[:3]), where=str(file))
    config = write_whole(file.parent / CONFIG, (json.dumps(config_of(branch), indent=2) + "\n").encode())
    return [file, config]


def config_of(branch: Any) -> dict[str, Any]:
    """What diffusers' ControlNetModel is built from, as its config.json."""
    own = {name: value for name, value in branch.config.items() if not name.startswith("_")}
    return {"_class_name": "ControlNetModel", "_diffusers_version": diffusers_version(), **own}


def diffusers_version() -> str:
    """The installed one, as its own files tell it."""
    import diffusers
    return str(diffusers.__version__)


def to_original(name: str) -> str:
    """A tensor's diffusers name as the original one."""
    module, _, leaf = name.rpartition(".")
    if found := re.fullmatch(r"controlnet_down_blocks\.(\d+)", module):
        original: str | None = f"zero_convs.{found[1]}.0"
    elif module == "controlnet_mid_block":
        original = "middle_block_out.0"
    elif module.startswith(HINT):
        step = module.removeprefix(f"{HINT}.")
        place = {"conv_in": 0, "conv_out": 14}.get(step)
        original = f"input_hint_block.{2 + 2 * int(step.split('.')[1]) if place is None else place}"
    else:
        original = names.to_original(module)
    assert original is not None, name
    return f"{PREFIX}{original}.{leaf}"


def from_original(name: str) -> str:
    """An original tensor's name (with `control_model.` or without) as diffusers'; any other stays as it is."""
    module, _, leaf = name.removeprefix(PREFIX).rpartition(".")
    if found := re.fullmatch(r"zero_convs\.(\d+)\.0", module):
        return f"controlnet_down_blocks.{found[1]}.{leaf}"
    if module == "middle_block_out.0":
        return f"controlnet_mid_block.{leaf}"
    if found := re.fullmatch(r"input_hint_block\.(\d+)", module):
        place = int(found[1])
        return f"{HINT}.{'conv_in' if place == 0 else 'conv_out' if place == 14 else f'blocks.{place // 2 - 1}'}.{leaf}"
    ours = names.from_original(module)
    return name if ours is None else f"{ours}.{leaf}"


# Reading


def family_of(shapes: Shapes) -> str | None:
    """The family of a ControlNet, by the form of its network; None where it is no ControlNet."""
    if recognise.kind(shapes) != "controlnet":
        return None
    bare = {from_original(name): shape for name, shape in shapes.items()}
    if any(name.startswith("add_embedding.") for name in bare):
        return "sdxl"
    projections = [shape for name, shape in bare.items() if name.endswith("proj_in.weight")]
    # Where attention reads no convolution, SD 2 differs from SD 1.
    return None if not projections else "sd1" if len(projections[0]) == 4 else "sd2"


def file_problems(file: Path, family: Family | None, where: str) -> list[Problem]:
    """Why a file cannot be used as a ControlNet (of this family), from its header alone."""
    if not file.is_file():
        return [Problem("There is no ControlNet file {file}. Check the path.", {"file": str(file)}, where)]
    try:
        shapes = container.read_header(file).shapes
    except AprendizError as error:
        return error.problems
    found = family_of(shapes)
    if found is None:
        return [Problem("{file} is no ControlNet that is known here. `python -m aprendiz inspect` tells what it is.",
                        {"file": file.name}, where)]
    if family is not None and found != family.name:
        return [Problem("{file} is a ControlNet for {found}, but the base is {family}. Name a ControlNet that was made for this "
                        "base's family.", {"file": file.name, "found": recognise.title(found), "family": family.title}, where)]
    return []


def open_branch(file: Path, base: Base) -> Opened:
    """A ControlNet file's branch for this base, in float32 on the base's device. Raises ModelError where it does not fit."""
    problems = file_problems(file, base.family, "controlnet")
    if problems:
        raise ModelError(problems[0].template, where=problems[0].where, **problems[0].fields)
    weights = open_weights(file)
    places = {from_original(name): name for name in weights.places}
    shapes = weights.shapes
    branch = base.family.control_branch(base, hint_widths(shapes, places), copied=False)
    wanted = {name: tuple(tensor.shape) for name, tensor in branch.state_dict().items()}
    strange = sorted(set(wanted) ^ set(places)) or sorted(name for name, shape in wanted.items() if shapes[places[name]] != shape)
    if strange:
        raise ModelError("{file} is a ControlNet for another shape of {family}: {count} of its tensors do not fit, such as "
                         "{example}. Name the base that it was made for.", file=file.name, family=base.family.title,
                         count=len(strange), example=strange[0], where=str(file))
    _fill(branch, weights, places)
    return Opened(branch.to(base.device).requires_grad_(False), weights.metadata.get(KIND) or kind_in_name(file.stem))


def _fill(branch: nn.Module, weights: Weights, places: Mapping[str, str]) -> None:
    import torch
    with torch.no_grad():
        for name, tensor in branch.state_dict().items():
            tensor.copy_(weights.read(places[name]))


def hint_widths(shapes: Shapes, places: Mapping[str, str]) -> tuple[int, ...]:
    """Channels of the hint network's levels, from a file."""
    blocks = [name for name in places if re.fullmatch(rf"{HINT}\.blocks\.\d*[13579]\.weight", name)]
    ordered = sorted(blocks, key=lambda name: int(name.split(".")[2]))
    return (shapes[places[f"{HINT}.conv_in.weight"]][0], *(shapes[places[name]][0] for name in ordered))


def kind_in_name(stem: str) -> str:
    """The kind of control that a file's name tells, as hosts read it; '' where it tells none."""
    words = ("inpaint", "canny", "scribble", "softedge", "hed", "depth", "normal", "mlsd", "openpose", "seg", "tile", "blur",
             "color")
    found = next((word for word in words if word in stem.lower()), "")
    return "softedge" if found == "hed" else found
