"""What a `.safetensors` file is, from its tensors' names and shapes and, where they leave it open, from its metadata.

Nothing is loaded. Standard library only.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from ..errors import Phrase
from . import names

KINDS = {"lora": "a LoRA", "controlnet": "a ControlNet", "controlnet_lllite": "a ControlNet-LLLite", "vae": "a VAE",
         "text_encoder": "a text encoder", "textual_inversion": "an embedding"}

TITLES = {"sd1": "Stable Diffusion 1.x", "sd2": "Stable Diffusion 2.x", "sdxl": "Stable Diffusion XL",
          "sd3": "Stable Diffusion 3", "flux": "Flux"}
VERSIONS = (("sdxl", "sdxl"), ("sd_v2", "sd2"), ("sd_v1", "sd1"), ("sd1", "sd1"), ("sd3", "sd3"), ("flux", "flux"))
ARCHITECTURES = (("stable-diffusion-xl", "sdxl"), ("stable-diffusion-v2", "sd2"), ("stable-diffusion-v1", "sd1"),
                 ("stable-diffusion-3", "sd3"), ("stable-diffusion-v3", "sd3"), ("flux", "flux"))
CROSS = {768: "sd1", 1024: "sd2", 2048: "sdxl"}  # width of the text states

Shapes = Mapping[str, tuple[int, ...]]


def title(family: str | None) -> str:
    """A family's name for a person."""
    return TITLES.get(family or "", family or "?")


def is_lora(keys: Iterable[str]) -> bool:
    """Whether some of the tensors are halves of an adapter (LoRA, LoHa, LoKr and their like)."""
    return any((parts := names.split(key)) is not None and parts[1] != ".alpha" for key in keys)


def algorithm(keys: Iterable[str]) -> str:
    """Which adapter it is: 'LoRA', 'DoRA', 'LoHa', 'LoKr', 'OFT', 'GLoRA' or 'difference'."""
    suffixes = {parts[1] for key in keys if (parts := names.split(key))}
    for mark, name in (*((mark, "DoRA") for mark in names.DORA), (".hada_w1_a", "LoHa"), (".lokr_w1", "LoKr"),
                       (".lokr_w1_a", "LoKr"), (".oft_blocks", "OFT"), (".oft_diag", "OFT"), (".a1.weight", "GLoRA")):
        if mark in suffixes:
            return name
    return "LoRA" if suffixes & {*names.DOWN, *names.UP} else "difference"


def lora_family(shapes: Shapes, metadata: Mapping[str, str]) -> str | None:
    """The family that an adapter is for, None where nothing tells."""
    if any(mark in key for key in shapes for mark in ("double_blocks", "single_transformer_blocks", "single_blocks")):
        return "flux"
    if any("joint_blocks" in key or key.startswith("transformer.transformer_blocks") for key in shapes):
        return "sd3"
    return lora_family_by_shape(shapes) or family_by_metadata(metadata) or _by_structure(shapes)


def lora_family_by_shape(shapes: Shapes) -> str | None:
    """From the width of the text states that cross attention reads, or that the text encoders have."""
    seen: Counter[str] = Counter()
    for key, shape in shapes.items():
        parts = names.split(key)
        if parts is None or parts[1] not in names.DOWN or len(shape) < 2:
            continue
        if "attn2" in parts[0] and parts[0].endswith(("to_k", "to_v")):
            seen[CROSS.get(shape[1], "")] += 1
        elif parts[0].startswith(("lora_te2_", "text_encoder_2.")):
            seen["sdxl"] += 1
        elif "q_proj" in parts[0] and parts[0].startswith(("lora_te_", "text_encoder.")) and shape[1] == 1024:
            seen["sd2"] += 1
    seen.pop("", None)
    # SDXL holds CLIP-L too, so 2048 or a second encoder settles it.
    return "sdxl" if seen["sdxl"] else (seen.most_common(1)[0][0] if +seen else None)


def family_by_metadata(metadata: Mapping[str, str]) -> str | None:
    """From what the file says of itself."""
    if metadata.get("ss_v2") == "True":
        return "sd2"
    for said, table in ((metadata.get("ss_base_model_version", ""), VERSIONS),
                        (metadata.get("modelspec.architecture", ""), ARCHITECTURES)):
        for begin, family in table:
            if said.startswith(begin):
                return family
    return None


def _by_structure(shapes: Shapes) -> str | None:
    """From the form of the network, whatever its widths."""
    spots = [(spot, shape) for key, shape in shapes.items()
             if (parts := names.split(key)) and parts[1] in names.DOWN and (spot := names.place(parts[0]))]
    if not spots:
        return None
    modules = {module: shape for (part, module), shape in spots if part == names.NETWORK}
    if any("transformer_blocks.1." in module or module.startswith("add_embedding") for module in modules):
        return "sdxl"
    if any(module.endswith(("proj_in", "proj_out")) and len(shape) == 2 for module, shape in modules.items()):
        return "sd2"
    return "sd1"


def kind(shapes: Shapes) -> str:
    """What a file is, by the names that only such files have."""
    def any_of(*marks: str) -> bool:
        return any(key.startswith(marks) for key in shapes)

    if is_lora(shapes):
        return "lora"
    if any("lllite_unet" in key for key in shapes):
        return "controlnet_lllite"
    if any_of("controlnet_cond_embedding.", "input_hint_block.", "control_model.", "zero_convs.", "lora_controlnet"):
        return "controlnet"
    if any_of("model.diffusion_model."):
        return "checkpoint" if any_of("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoders.") else "network"
    if any_of("double_blocks.", "joint_blocks.", "transformer_blocks.", "single_transformer_blocks.", "input_blocks.",
              "down_blocks.",
              "diffusion_model."):
        return "network"
    if any_of("first_stage_model.", "encoder.down", "decoder.up", "encoder.conv_in", "decoder.conv_in"):
        return "vae"
    if any_of("text_model.", "encoder.layers.", "transformer.resblocks.", "encoder.block.", "embeddings.token_embedding"):
        return "text_encoder"
    if shapes.keys() and (shapes.keys() <= {"emb_params", "clip_l", "clip_g", "t5xxl"} or (
            len(shapes) == 1 and len(shape := next(iter(shapes.values()))) in (1, 2)
            and shape[-1] in (768, 1024, 1280, 2048, 4096))):
        return "textual_inversion"
    return "unknown"


def base_family(shapes: Shapes) -> str | None:
    """The family of a checkpoint, network, ControlNet or embedding."""
    if any(mark in key for key in shapes for mark in ("double_blocks.", "single_transformer_blocks.")):
        return "flux"
    if any("joint_blocks." in key for key in shapes) or any(key.startswith("transformer_blocks.") and "add_q_proj" in key
                                                            for key in shapes):
        return "sd3"
    if "clip_g" in shapes:
        return "sdxl"
    for key, shape in shapes.items():
        if key.endswith("attn2.to_k.weight") and len(shape) == 2:
            return CROSS.get(shape[1]) or ("sdxl" if any("label_emb." in k or "add_embedding." in k for k in shapes) else "sd1")
    if kind(shapes) == "textual_inversion":
        return {768: "sd1", 1024: "sd2"}.get(next(iter(shapes.values()))[-1])
    return None


def kind_name(kind: str) -> Phrase:
    """What `kind` found, in words."""
    return Phrase(KINDS[kind]) if kind in KINDS else Phrase("a model")
