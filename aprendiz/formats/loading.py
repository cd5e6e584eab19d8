"""Loading a base: its modules are made without memory, then given their tensors one by one.

Each tensor goes from the file into its place in the target precision, so that loading takes little more memory than what is kept.
The VAE is kept in float32: it is used once per picture, and in half precision SDXL's overflows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import AprendizError, ModelError, Problem
from . import original
from .original import Layout, Piece, TextLayout
from .weights import STEM, Shapes, Weights, open_folder, open_weights, read_json

if TYPE_CHECKING:
    import torch

    from ..families import Base, Family, Source
    from ..settings import BaseSettings

# How all three families were trained; a diffusers folder brings its own.
SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
            "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "timestep_spacing": "leading"}


@dataclass(frozen=True)
class Component:
    """One module to be: its configuration, its file or files, where in them each tensor stands. folder: in diffusers' form."""

    config: dict[str, Any]
    weights: Weights
    piece: Callable[[str], Piece]
    folder: bool = False


def load(family: Family, layout: Layout, source: Source, settings: BaseSettings, dtype: torch.dtype) -> Base:
    """Open a U-Net base with CLIP text encoders, in whichever form it is. Raises ModelError."""
    import torch
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from ..families import Base
    texts = [_text(source, settings, layout, text) for text in layout.texts]
    encoders = [_build_text(text, component, dtype) for text, component in zip(layout.texts, texts)]
    network = _build(UNet2DConditionModel, _network(source, family, layout, encoders[-1]), dtype)
    pictures = _vae(source, settings, layout)
    vae = _build(AutoencoderKL, pictures, torch.float32)
    refill = {_part(text): functools.partial(_fill_text, encoder, component, dtype)
              for text, encoder, component in zip(layout.texts, encoders, texts)}
    refill["vae"] = functools.partial(_fill, vae, pictures, torch.float32)
    prediction = source.prediction or "epsilon"
    schedule = source.details.get("schedule") or {**SCHEDULE, "rescale_betas_zero_snr": source.zero_terminal_snr}
    schedule = {**schedule, "prediction_type": "v_prediction" if prediction == "v" else prediction}
    tokenizers = [_tokenizer(component, text) for component, text in zip(texts, layout.texts)]
    resolution = source.resolution or (768 if family.prediction is None and prediction == "v" else family.resolution)
    return Base(family, source, network, vae, encoders, tokenizers, prediction, schedule, resolution,
                zero_terminal_snr=source.zero_terminal_snr, clip_skip=settings.clip_skip, refill=refill)


def vocabularies(source: Source, settings: BaseSettings, layout: Layout) -> list[tuple[int, Any]]:
    """Each text encoder's width and tokenizer, from headers alone. Raises ModelError."""
    texts = [_text(source, settings, layout, text) for text in layout.texts]
    return [(int(component.config["hidden_size"]), _tokenizer(component, text)) for component, text in zip(texts, layout.texts)]


def problems(source: Source, settings: BaseSettings, layout: Layout) -> list[Problem]:
    """Why the VAE or the text encoders, or those named in their place, cannot be used; from headers alone."""
    found: list[Problem] = []
    for look in (functools.partial(_vae, source, settings, layout),
                 *(functools.partial(_text, source, settings, layout, text) for text in layout.texts)):
        try:
            look()
        except AprendizError as error:
            found += error.problems
    return found


def _network(source: Source, family: Family, layout: Layout, last_encoder: torch.nn.Module) -> Component:
    if source.kind == "folder":
        weights = open_folder(source.path / "unet", STEM)
        assert weights is not None  # `find` saw it
        return Component(read_json(source.path / "unet" / "config.json"), weights, Piece)
    weights = open_weights(source.path)
    weights = weights.under(original.NETWORK) if any(name.startswith(original.NETWORK) for name in weights.places) else weights
    config = original.network_config(weights.shapes, layout, source.details.get("own", {}).get("network", {}))
    if config is None:
        raise ModelError("{file} has a network built in a way that is not known. Open the model as a diffusers folder.",
                         file=str(source.path), where="base.path")
    if "projection_class_embeddings_input_dim" in config:
        # The rest of that input is the six size conditions (Podell et al. 2023, section 2.2).
        config["addition_time_embed_dim"] = (config["projection_class_embeddings_input_dim"] - _width(last_encoder)) // 6
    config["sample_size"] = (source.resolution or family.resolution) // 8
    stages = list(zip(config["up_block_types"], range(len(config["up_block_types"]))))
    attention = {f"up_blocks.{i}": kind.startswith("CrossAttn") for kind, i in stages}
    return Component(config, weights, lambda name: original.network_piece(name, attention))


def _width(encoder: Any) -> int:
    return int(encoder.config.projection_dim)


def _vae(source: Source, settings: BaseSettings, layout: Layout) -> Component:
    """The base's own VAE, or the one named in its place: a file of either layout, a VAE's folder or a whole model's."""
    path = Path(settings.vae).expanduser() if settings.vae else source.path
    if settings.vae and not path.exists():
        raise ModelError("There is no VAE at {path}. Check the path.", path=str(path), where="base.vae")
    if path.is_dir():
        folder = path / "vae" if (path / "vae").is_dir() else path
        weights = open_folder(folder, STEM) if (folder / "config.json").is_file() else None
        if weights is None or "decoder.conv_in.weight" not in weights.shapes:
            raise ModelError("{path} is no VAE. Name a VAE's file or folder.", path=str(path), where="base.vae")
        return Component(read_json(folder / "config.json"), weights, functools.partial(_same_vae, shapes=weights.shapes))
    weights = open_weights(path)
    own = (original.read_own(weights.metadata) if settings.vae else source.details.get("own", {})).get("vae", {})
    scale = float(own.get("scale", layout.vae_scale))
    weights = weights.under(original.VAE) if any(name.startswith(original.VAE) for name in weights.places) else weights
    shapes, config = weights.shapes, None
    in_diffusers_names = "encoder.down_blocks.0.resnets.0.conv1.weight" in shapes
    if "decoder.conv_in.weight" in shapes and "encoder.conv_in.weight" in shapes:
        config = original.vae_config(_original_names(shapes) if in_diffusers_names else shapes, scale, own)
    if config is None:
        raise ModelError("{path} is no VAE. Name a VAE's file or folder.", path=str(path), where="base.vae")
    if in_diffusers_names:
        return Component(config, weights, functools.partial(_same_vae, shapes=shapes))
    return Component(config, weights, functools.partial(original.vae_piece, levels=len(config["block_out_channels"])))


def _original_names(shapes: Shapes) -> Shapes:
    """A VAE's shapes in diffusers' names, of a file without its config.json, under original ones as far as they tell its form."""
    told = ("encoder.", "quant_conv.", "post_quant_conv.", "decoder.conv_in.")
    return {original.vae_piece(name, 0).key: shape for name, shape in shapes.items() if name.startswith(told)}


def _same_vae(name: str, shapes: Shapes) -> Piece:
    """A VAE's tensor in a file of diffusers' names, those of its attention before 2023 included."""
    if name in shapes:
        return Piece(name)
    for new, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return Piece(name)


def _text(source: Source, settings: BaseSettings, layout: Layout, text: TextLayout) -> Component:
    """One text encoder, from the base or from what was named in its place."""
    path = Path(settings.text_encoder).expanduser() if settings.text_encoder else source.path
    own = source.details.get("own", {}).get(_part(text), {}) if not settings.text_encoder else {}
    if not path.exists():
        raise ModelError("There is no text encoder at {path}. Check the path.", path=str(path), where="base.text_encoder")
    if path.is_dir():
        alone = len(layout.texts) == 1 and not (path / text.folder).is_dir()
        folder = path if alone else path / text.folder
        weights = open_folder(folder, "model") if (folder / "config.json").is_file() else None
        if weights is not None:
            same = functools.partial(_same_text, shapes=weights.shapes)
            return Component(read_json(folder / "config.json"), weights, same, folder=True)
    else:
        whole = open_weights(path)
        bare = len(layout.texts) == 1 and settings.text_encoder is not None
        weights = whole.under(text.prefix, *([""] if bare else []))
        if not text.openclip and "text_model.embeddings.token_embedding.weight" not in weights.places:
            weights = replace(weights, places={f"text_model.{name}": place for name, place in weights.places.items()})
        start = "token_embedding.weight" if text.openclip else "text_model.embeddings.token_embedding.weight"
        if start in weights.places:
            config = original.text_config(weights.shapes, text, own)
            return Component(config, weights, functools.partial(original.text_piece, openclip=text.openclip))
    raise ModelError("{path} lacks the text encoder '{part}' that this family needs. "
                     "Name a checkpoint or a diffusers folder of the same family with --text-encoder.",
                     path=str(path), part=text.folder, where="base.text_encoder")


def _part(text: TextLayout) -> str:
    return "text_encoder_2" if text.folder.endswith("_2") else "text_encoder_1"


def _same_text(name: str, shapes: Shapes) -> Piece:
    """A text encoder's tensor in a file of transformers' names: `text_model.` comes and goes with its versions."""
    bare = name.removeprefix("text_model.")
    return next((Piece(one) for one in (name, bare, f"text_model.{bare}") if one in shapes), Piece(name))


def _build_text(text: TextLayout, component: Component, dtype: torch.dtype) -> torch.nn.Module:
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    # A precision in the configuration would be taken for the module's own.
    config = CLIPTextConfig(**{name: value for name, value in component.config.items() if name not in ("dtype", "torch_dtype")})
    with torch.device("meta"):
        module: torch.nn.Module = (CLIPTextModelWithProjection if text.projection else CLIPTextModel)(config)
    _fill_text(module, component, dtype)
    return module


def _fill_text(module: torch.nn.Module, component: Component, dtype: torch.dtype) -> None:
    import torch
    _fill(module, component, dtype)
    for name, buffer in list(module.named_buffers()):
        if buffer.is_meta:  # the positions 0, 1, 2...; not among the saved tensors
            owner = module.get_submodule(name.rpartition(".")[0])
            owner.register_buffer("position_ids", torch.arange(buffer.shape[-1])[None], persistent=False)


def _build(kind: Any, component: Component, dtype: torch.dtype) -> torch.nn.Module:
    """A diffusers module with its weights."""
    import torch
    with torch.device("meta"):
        module: torch.nn.Module = kind.from_config(component.config)
    _fill(module, component, dtype)
    return module


def _fill(module: torch.nn.Module, component: Component, dtype: torch.dtype) -> None:
    """Give a module made on the meta device its tensors, one by one, in `dtype`; frozen, in evaluation mode."""
    shapes, loaded, wrong = component.weights.shapes, {}, []
    for name, wanted in module.state_dict().items():
        piece = component.piece(name)
        if piece.key not in shapes or not _fits(shapes[piece.key], tuple(wanted.shape), piece):
            wrong.append(piece.key)
        elif not wrong:
            loaded[name] = _take(component.weights, piece, tuple(wanted.shape), dtype)
    if wrong:
        raise ModelError("{file} is damaged, or of a variant that is not supported: {count} of its tensors are missing or of "
                         "another shape, such as {name}.",
                         file=str(component.weights.file), count=len(wrong), name=wrong[0], where="base.path")
    module.load_state_dict(loaded, assign=True)
    module.requires_grad_(False).eval()


def _fits(found: tuple[int, ...], wanted: tuple[int, ...], piece: Piece) -> bool:
    if piece.third is not None:
        found = (found[0] // 3, *found[1:])
    if piece.transpose:
        found = found[::-1]
    # A 1 x 1 convolution stands for a linear layer and the other way round.
    return found == wanted or (found[:2] == wanted[:2] and set(found[2:] + wanted[2:]) == {1})


def _take(weights: Weights, piece: Piece, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    tensor = weights.read(piece.key)
    if piece.third is not None:
        tensor = tensor.chunk(3)[piece.third].clone()
    if piece.transpose:
        tensor = tensor.T
    return tensor.reshape(shape).to(dtype).contiguous()


def _tokenizer(component: Component, text: TextLayout) -> Any:
    """The tokenizer in a diffusers folder; elsewhere, and where it lacks one, that of the CLIP vocabulary."""
    from transformers import CLIPTokenizer

    from . import clip_vocab
    folder = component.weights.file.parent.parent / text.tokenizer
    rows, length = component.config["vocab_size"], component.config.get("max_position_embeddings", 77)
    if component.folder and any((folder / name).is_file() for name in ("vocab.json", "tokenizer.json")):
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=length)
    if rows != clip_vocab.SIZE:
        raise ModelError("{file} has a text encoder for {rows} tokens and no tokenizer beside it, and CLIP's own has {size}. "
                         "Open the model as a diffusers folder.",
                         file=str(component.weights.file), rows=rows, size=clip_vocab.SIZE, where="base.path")
    return clip_vocab.tokenizer(text.pad)
