"""Which model a base is: the embedded `micro`, a diffusers folder, or one `.safetensors` file in the original layout.

`find` looks at names and headers alone and says in one sentence what cannot be used; `open_base` then loads it (`loading`), and
`write_single_file` writes one (`single_file`).
"""

from __future__ import annotations

import functools
import hashlib
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import registry
from ..errors import ModelError, Problem
from . import original, recognise
from .container import file_hash
from .single_file import write_single_file
from .weights import STEM, Shapes, open_folder, open_weights, read_json

if TYPE_CHECKING:
    import torch

    from ..families import Base, Family, Source
    from ..settings import BaseSettings

logger = logging.getLogger(__name__)

MICRO = Path(__file__).parents[1] / "micro" / "base"
PREDICTIONS = {"epsilon": "epsilon", "v": "v", "v_prediction": "v", "v-prediction": "v"}

__all__ = ["find", "open_base", "sha256", "write_single_file"]


def find(settings: BaseSettings) -> Source:
    """What the base is, from names and headers alone. Raises ModelError, in one sentence, for all that is no base."""
    path = MICRO if settings.path == "micro" else Path(settings.path).expanduser()
    if path.is_dir():
        source = _find_folder(path, settings)
    elif path.exists():
        source = _find_file(path, settings)
    else:
        raise ModelError("There is no model at {path}. Name 'micro', a diffusers folder or a .safetensors checkpoint.",
                         path=str(path), where="base.path")
    for problem in source.details["warnings"]:
        logger.warning(problem.english)
    return source


def open_base(settings: BaseSettings, dtype: torch.dtype) -> Base:
    """Find a base and open it on the CPU, frozen, its network and text encoders in `dtype`. Raises ModelError."""
    source = find(settings)
    return registry.families()[source.family].load(source, settings, dtype)


def sha256(source: Source) -> str:
    """Hex digest of what a base was opened from: the file's own, or one of all files of the folder's parts."""
    if source.kind == "file":
        return _hash(source.path, source.path.stat().st_size, source.path.stat().st_mtime_ns)
    digest = hashlib.sha256()
    for file in sorted(source.path.rglob("*")):
        if file.suffix in (".safetensors", ".json", ".txt") and file.is_file():
            stat = file.stat()
            digest.update(f"{file.relative_to(source.path).as_posix()} {_hash(file, stat.st_size, stat.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _hash(file: Path, size: int, changed: int) -> str:
    """A file's SHA-256, taken once as long as its size and time stay."""
    return file_hash(file)


def _find_folder(path: Path, settings: BaseSettings) -> Source:
    from ..families import Source
    unet = path / "unet"
    if not (unet / "config.json").is_file():
        if (path / "transformer").is_dir() or (path / "model_index.json").is_file():
            raise _unknown(path)
        raise ModelError("{path} is no diffusers folder: it has no model_index.json and no unet folder. "
                         "Name such a folder, or a .safetensors file.", path=str(path), where="base.path")
    network = open_folder(unet, STEM)
    if network is None:
        raise ModelError("{path} has no weights: there is no {name} in its unet folder. Download the model again.",
                         path=str(path), name=f"{STEM}.safetensors", where="base.path")
    family = _family(path, network.shapes)
    if not (path / "text_encoder").is_dir() and settings.text_encoder is None:
        raise _no_text_encoder(path)
    if not (path / "vae").is_dir() and settings.vae is None:
        raise _no_vae(path)
    schedule = read_json(path / "scheduler" / "scheduler_config.json", missing={})
    said = PREDICTIONS.get(str(schedule.get("prediction_type", "")))
    prediction, warnings = _prediction(path, family, said, settings)
    sample = read_json(unet / "config.json").get("sample_size")
    factor = 2 ** (len(read_json(path / "vae" / "config.json", missing={}).get("block_out_channels", [0] * 4)) - 1)
    return Source(family.name, path, "folder", prediction, bool(schedule.get("rescale_betas_zero_snr")),
                  sample * factor if isinstance(sample, int) else None, details={"schedule": schedule, "warnings": warnings})


def _find_file(path: Path, settings: BaseSettings) -> Source:
    from ..families import Source
    weights = open_weights(path)
    shapes = weights.shapes
    kind = recognise.kind(shapes)
    if kind in recognise.KINDS:
        raise ModelError("{path} is {kind}, not a base model. Name the checkpoint that it belongs to.",
                         path=str(path), kind=recognise.kind_name(kind), where="base.path")
    family = _family(path, shapes)
    if not any("token_embedding" in name for name in shapes) and settings.text_encoder is None:
        raise _no_text_encoder(path)
    if not any(name.startswith(original.VAE) for name in shapes) and settings.vae is None:
        raise _no_vae(path)
    if any(name.startswith("edm_vpred.") for name in shapes):
        raise ModelError("{path} was made with EDM's form of v-prediction, which is not supported. Choose another base.",
                         path=str(path), where="base.path")
    beside = path.with_suffix(".yaml")
    yaml = beside.read_text(encoding="utf-8", errors="replace") if beside.is_file() else ""
    said = _said(weights.metadata) or ("v" if "v_pred" in shapes else None) or original.parameterization(yaml)
    prediction, warnings = _prediction(path, family, said, settings)
    resolution = re.match(r"(\d+)x\d+$", weights.metadata.get("modelspec.resolution", ""))
    return Source(family.name, path, "file", prediction, "ztsnr" in shapes, int(resolution[1]) if resolution else None,
                  details={"own": _own(weights.metadata, yaml), "warnings": warnings})


def _family(path: Path, shapes: Shapes) -> Family:
    """The family whose network this is."""
    for family in registry.families().values():
        if family.recognise(shapes):
            return family
    names = (f"{original.NETWORK}input_blocks.0.0.weight", "input_blocks.0.0.weight", "conv_in.weight")
    first = next((shapes[name] for name in names if name in shapes), None)
    if first is not None and len(first) == 4 and first[1] != 4:
        raise ModelError("{path} is made for another task, such as inpainting: its network takes {channels} channels, not 4. "
                         "Choose the ordinary model that it was made from.", path=str(path), channels=first[1], where="base.path")
    raise _unknown(path)


def _unknown(path: Path) -> ModelError:
    return ModelError("{path} is no model of a known kind. These can be taught: {families}.", path=str(path),
                      families=", ".join(family.title for family in registry.families().values()), where="base.path")


def _no_text_encoder(path: Path) -> ModelError:
    return ModelError("{path} has no text encoder. Name one with --text-encoder: a checkpoint or diffusers folder of its family.",
                      path=str(path), where="base.text_encoder")


def _no_vae(path: Path) -> ModelError:
    return ModelError("{path} has no VAE. Name one with --vae: a file or a folder.", path=str(path), where="base.vae")


def _said(metadata: Mapping[str, str]) -> str | None:
    """What a file's metadata says that the network predicts, None if nothing."""
    said = PREDICTIONS.get(metadata.get("modelspec.prediction_type", "").lower())
    by_name = {"stable-diffusion-v2-768-v": "v", "stable-diffusion-v2-512": "epsilon"}
    return said or by_name.get(metadata.get("modelspec.architecture", ""))


def _prediction(path: Path, family: Family, said: str | None, settings: BaseSettings) -> tuple[str, tuple[Problem, ...]]:
    """What the network predicts, and what to warn about. Raises ModelError where nobody says and it cannot be guessed."""
    asked = None if settings.prediction == "auto" else settings.prediction
    if said is not None:
        if asked not in (None, said):
            return said, (Problem("{path} says itself that it predicts {said}, so prediction = {asked} is not used.",
                                  {"path": path.name, "said": said, "asked": asked}, "base.prediction", warning=True),)
        return said, ()
    if asked is not None:
        return asked, ()
    if family.prediction is None:
        raise ModelError("{path} does not say what it predicts, and models of this family differ. "
                         "Set prediction to 'v' (most 768-pixel models) or 'epsilon' (512-pixel ones).",
                         path=str(path), where="base.prediction")
    if re.search(r"v[-_ ]?pred", path.stem, re.IGNORECASE):
        return family.prediction, (Problem(
            "{path} is named like a v-prediction model, but nothing in it says so, and it is taken as {taken}. "
            "If its pictures come out grey or burnt, set prediction to 'v'.",
            {"path": path.name, "taken": family.prediction}, "base.prediction", warning=True),)
    return family.prediction, ()


def _own(metadata: Mapping[str, str], yaml: str) -> dict[str, dict[str, Any]]:
    """What shapes do not tell of each part, from our metadata or a .yaml beside the file."""
    own = {part: dict(values) for part, values in original.read_own(metadata).items()}
    numbers = original.yaml_numbers(yaml)
    network, vae = own.setdefault("network", {}), own.setdefault("vae", {})
    for name in ("num_heads", "num_head_channels"):
        if name in numbers:
            network.setdefault(name, int(numbers[name]))
    if "scale_factor" in numbers:
        vae.setdefault("scale", numbers["scale_factor"])
    return own
