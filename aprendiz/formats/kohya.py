"""LoRA files in kohya's layout, which every host loads: written by our own code, read in any layout there is.

For a module P: `P.lora_down.weight`, `P.lora_up.weight`, `P.alpha`; the update is up @ down alpha / r. Shapes: linear down (r,
in), up (out, r); convolution down (r, in, kh, kw), up (out, r, 1, 1); alpha a float32 scalar whatever the weights' precision,
for bfloat16 would round it.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import ModelError, TrainingError
from . import container, names, recognise
from .adapter_config import Alphas

if TYPE_CHECKING:
    from ..families import Family

logger = logging.getLogger(__name__)

LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class LoraWeight:
    """One module's update. part: 'network', 'text_encoder_1', 'text_encoder_2'; module: its name in diffusers or transformers."""

    part: str
    module: str
    down: Tensor
    up: Tensor
    alpha: float


@dataclass(frozen=True)
class LoraFile:
    """What a file held.

    family: by name, from keys and shapes, None if they do not tell; unmatched: tensors that belong to no module known.
    """

    weights: list[LoraWeight]
    metadata: dict[str, str]
    family: str | None
    unmatched: list[str]


def write(file: Path, weights: Sequence[LoraWeight], family: Family, metadata: Mapping[str, str],
          dtype: torch.dtype = torch.float16, again: bool = False) -> Path:
    """Write a LoRA in the family's own layout, whole or not at all, with the hashes of its final bytes in its metadata.

    again: a file of this name is this run's own, from before it was resumed, and may go; one with the very same weights may
    anyway. Raises TrainingError for values that are no numbers or too large for `dtype`, RunError if another file has the name.
    """
    tensors = {}
    for one in one_alpha(weights):
        name = family.lora_name(one.part, one.module)
        tensors[f"{name}.lora_down.weight"] = stored(one.down, dtype, one.module)
        tensors[f"{name}.lora_up.weight"] = stored(one.up, dtype, one.module)
        tensors[f"{name}.alpha"] = torch.tensor(effective_alpha(one), dtype=torch.float32)
    return write_tensors(file, tensors, metadata, again)


def one_alpha(weights: Sequence[LoraWeight]) -> list[LoraWeight]:
    """The same update with one alpha in each part, the commonest; where a module had another, the difference goes into `up`.

    diffusers 0.42 with peft 0.21 reads one alpha a part: modules with another came out wrong by up to 6e-2. Ranks may differ.
    """
    usual = {part: Counter(one.alpha for one in weights if one.part == part).most_common(1)[0][0]
             for part in {one.part for one in weights}}
    return [one if one.alpha == usual[one.part] else replace(one, up=one.up.float() * (one.alpha / usual[one.part]),
                                                             alpha=usual[one.part])
            for one in weights]


def folded(one: LoraWeight) -> LoraWeight:
    """The same update with its scale inside `up`: alpha = rank."""
    rank = one.down.shape[0]
    return replace(one, up=one.up.float() * (one.alpha / rank), alpha=float(rank))


def effective_alpha(one: LoraWeight) -> float:
    """The alpha to write. Never 0: sd-scripts reads that as the rank, the others as no effect."""
    if not one.alpha > 0:
        raise ValueError(f"alpha of {one.module} is {one.alpha}")
    return float(one.alpha)


def stored(tensor: Tensor, dtype: torch.dtype, module: str) -> Tensor:
    """A tensor as it is stored: on the CPU, contiguous, in `dtype`, every value a number that fits."""
    plain = tensor.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(plain).all()):
        raise TrainingError("The weights of {module} are no numbers any more, so no file was written. Lower the learning rate, "
                            "and resume from the last good state.", module=module)
    if dtype == torch.float16 and plain.numel() and float(plain.abs().max()) > LARGEST_HALF:
        raise TrainingError("A weight of {module} is {value}, too large for half precision (65504), so no file was written. "
                            "Lower the "
                            "learning rate, and resume from the last good state.", module=module,
                            value=f"{float(plain.abs().max()):.0f}")
    return plain.to(dtype).contiguous().clone()


def write_tensors(file: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], again: bool = False) -> Path:
    """Tensors and metadata as a `.safetensors` file; hashes come from the final bytes, a told name is the file's own."""
    from safetensors.torch import save
    content = save(dict(tensors))
    told = dict(metadata)
    if "ss_output_name" in told:  # the alias that A1111 and Forge know the LoRA by; it must be the file's name
        told["ss_output_name"] = file.stem
    hashes = container.hash_fields(content)
    # A resumed run comes to the same step with the same weights; the file is then its own.
    again = again or container.holds(file, hashes["sshs_model_hash"])
    return container.write_new(file, container.with_metadata(content, told | hashes), again)


def read(file: Path, family: Family | None = None) -> tuple[list[LoraWeight], dict[str, str]]:
    """A LoRA file in any layout, as (weights, metadata); what matches no module is logged by name. Raises ModelError.

    Modules have the names that the installed diffusers and transformers give them.
    """
    found = read_all(file, family)
    if found.unmatched:
        logger.warning("%s: %d tensors belong to no module known and were left out: %s",
                       file.name, len(found.unmatched), ", ".join(found.unmatched))
    return found.weights, found.metadata


def read_all(file: Path, family: Family | None = None) -> LoraFile:
    """The same with all that there is to tell: the family that keys and shapes show, and what matched nothing."""
    from safetensors import SafetensorError
    from safetensors.torch import load
    header = container.read_header(file)
    if not recognise.is_lora(header.tensors):
        raise ModelError("{file} is no LoRA: none of its {count} tensors is part of one. `python -m aprendiz inspect` tells "
                         "what it is.",
                         file=file.name, count=len(header.tensors), where=str(file))
    shown = recognise.lora_family(header.shapes, header.metadata)
    if family is not None and shown is not None and shown != family.name:
        raise ModelError("{file} is a LoRA for {found}, and this base is {wanted}. Choose a LoRA of the same family.",
                         file=file.name, found=recognise.title(shown), wanted=family.title, where=str(file))
    try:
        tensors = load(file.read_bytes())
    except (SafetensorError, ValueError, KeyError) as error:
        raise ModelError("{file} is damaged: its tensors cannot be read. Download or copy it again.",
                         file=file.name, where=str(file)) from error
    weights, unmatched = from_tensors(tensors, Alphas(header.metadata))
    if not weights:
        raise ModelError("{file} is a LoRA of a kind that cannot be read here: {example}. Only plain LoRA (down and up "
                         "matrices) can.",
                         file=file.name, example=unmatched[0], where=str(file))
    damaged = [f"{one.part}.{one.module}" for one in weights if not sound(one)]
    if damaged:
        raise ModelError("{file} is damaged: in {count} of its {total} modules, such as {example}, the matrices do not fit each "
                         "other, or hold values that are no numbers. Download or copy it again, or choose another.",
                         file=file.name, count=len(damaged), total=len(weights), example=damaged[0], where=str(file))
    return LoraFile(weights, dict(header.metadata), shown, unmatched)


def from_tensors(tensors: Mapping[str, Tensor], alphas: Alphas) -> tuple[list[LoraWeight], list[str]]:
    """Named tensors as weights, and the names that belong to no module. alphas: of modules without a tensor for it."""
    modules: dict[str, dict[str, Tensor]] = {}
    unmatched = []
    for key, tensor in tensors.items():
        parts = names.split(key)
        if parts is None:
            unmatched.append(key)
            continue
        modules.setdefault(parts[0], {})[parts[1]] = tensor
    weights = []
    for name, of_module in modules.items():
        spot = names.place(name)
        weight = _weight(spot, of_module, alphas) if spot else None
        if weight is None:
            unmatched += [name + suffix for suffix in of_module]
        else:
            weights.append(weight)
            plain = (*names.DOWN, *names.UP, ".alpha")
            unmatched += [name + suffix for suffix in of_module if suffix not in plain]
    return weights, sorted(unmatched)


def _weight(spot: tuple[str, str], of_module: Mapping[str, Tensor], alphas: Alphas) -> LoraWeight | None:
    down = next((of_module[suffix] for suffix in names.DOWN if suffix in of_module), None)
    up = next((of_module[suffix] for suffix in names.UP if suffix in of_module), None)
    if down is None or up is None or not of_module.keys().isdisjoint((".lora_mid.weight", *names.DORA)):
        return None
    rank = down.shape[0] if down.ndim else 0
    part, module = spot
    told = of_module.get(".alpha")
    alpha = alphas.of(part, module, rank) if told is None else float(told) if told.numel() == 1 else math.nan
    return LoraWeight(part, names.module_here(part, module), down, up, alpha or float(rank))


def sound(one: LoraWeight) -> bool:
    """Whether a module's matrices fit each other, and all that they hold is numbers."""
    fits = min(one.down.ndim, one.up.ndim) >= 2 and one.up.shape[1:].numel() == one.down.shape[0] > 0
    return fits and math.isfinite(one.alpha) and all(bool(torch.isfinite(m.float()).all()) for m in (one.down, one.up))
