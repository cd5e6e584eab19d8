"""Module names of LoRA files, in every layout, as the names that diffusers and transformers give their modules.

    kohya, diffusers names   lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q
    kohya, original names    lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q        (SDXL's default)
    original                 diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q
    PEFT                     unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q
    old diffusers            unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q

Original names number the blocks of U-Nets with two residual layers a level, as all of SD 1, 2 and XL have: input block 1 + 3
level + layer, output block 3 level + layer. Text encoders are `lora_te_`, `lora_te1_`, `lora_te2_`, `text_encoder.`,
`text_encoder_2.`. Standard library only.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.metadata import PackageNotFoundError, version

NETWORK, TEXT_1, TEXT_2 = "network", "text_encoder_1", "text_encoder_2"

# What follows a module's name in the tensors of one adapter, longest first.
SUFFIXES = tuple(sorted((
    ".lora_down.weight", ".lora_up.weight", ".lora_mid.weight", ".alpha", ".dora_scale",
    ".lora_A.weight", ".lora_B.weight", ".lora_A.default.weight", ".lora_B.default.weight", ".lora_A", ".lora_B",
    ".lora_magnitude_vector", ".lora_magnitude_vector.default.weight",
    ".lora.down.weight", ".lora.up.weight", "_lora.down.weight", "_lora.up.weight",
    ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight",
    ".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b", ".hada_t1", ".hada_t2",
    ".lokr_w1", ".lokr_w2", ".lokr_w1_a", ".lokr_w1_b", ".lokr_w2_a", ".lokr_w2_b", ".lokr_t2",
    ".oft_blocks", ".oft_diag", ".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight",
    ".diff", ".diff_b", ".w_norm", ".b_norm", ".set_weight", ".reshape_weight",
), key=len, reverse=True))
DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora_A", ".lora.down.weight", "_lora.down.weight",
        ".lora_linear_layer.down.weight")
UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", ".lora_B", ".lora.up.weight", "_lora.up.weight",
      ".lora_linear_layer.up.weight")
DORA = (".dora_scale", ".lora_magnitude_vector", ".lora_magnitude_vector.default.weight")  # what makes a LoRA a DoRA

# Words of module names that contain an underscore of their own; every other underscore stands for a dot.
WORDS = frozenset("""
    down_blocks up_blocks mid_block transformer_blocks to_q to_k to_v to_out to_add_out proj_in proj_out time_emb_proj
    conv_shortcut conv_in conv_out time_embedding add_embedding class_embedding linear_1 linear_2 input_blocks output_blocks
    middle_block skip_connection in_layers out_layers emb_layers time_embed label_emb text_model self_attn q_proj k_proj v_proj
    out_proj text_projection
""".split())

RESNET = {"in_layers.2": "conv1", "out_layers.3": "conv2", "emb_layers.1": "time_emb_proj", "skip_connection": "conv_shortcut",
          "in_layers.0": "norm1", "out_layers.0": "norm2"}
BASIC = {"input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out",
         "time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2",
         "label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}
NETWORK_PREFIXES = ("lora_unet_", "lycoris_", "diffusion_model.", "unet.", "base_model.model.")
TEXT_PREFIXES = {"lora_te_": TEXT_1, "lora_te1_": TEXT_1, "lora_te2_": TEXT_2, "text_encoder.": TEXT_1, "text_encoder_2.": TEXT_2}


def split(key: str) -> tuple[str, str] | None:
    """A tensor's name as (module, what of it): ('lora_unet_conv_in', '.alpha'). None if it is of no adapter known."""
    for suffix in SUFFIXES:
        if key.endswith(suffix) and len(key) > len(suffix):
            return key[:-len(suffix)], suffix
    return None


def place(name: str) -> tuple[str, str] | None:
    """A module's name in any layout as (part, name in diffusers or transformers). None if it is none that we know.

    Text encoders' names begin with `text_model.` here, whatever the installed transformers calls them; see `module_here`.
    """
    for prefix, part in TEXT_PREFIXES.items():
        if name.startswith(prefix):
            return _text(part, name.removeprefix(prefix))
    bare, known = name, False
    for prefix in ("base_model.model.", "unet.", "base_model.model.", *NETWORK_PREFIXES):
        if bare.startswith(prefix):
            bare, known = bare.removeprefix(prefix), True
    module = dotted(bare) if "." not in bare else bare
    module = module.replace(".processor.to_", ".to_")
    if module.endswith(".to_out"):
        module += ".0"
    module = from_original(module) or module
    shaped = NETWORK_MODULE.fullmatch(module) is not None
    return (NETWORK, module) if shaped and (known or module.startswith(("down_blocks.", "up_blocks.", "mid_block."))) else None


NETWORK_MODULE = re.compile(r"""
    (?: (?:down_blocks|up_blocks)\.\d+\. | mid_block\. ) (?: (?:attentions|resnets)\.\d+\..+ |
    (?:downsamplers|upsamplers)\.0\.conv ) | conv_in | conv_out | conv_norm_out | (?:time|add|class)_embedding\.linear_[12]
""", re.VERBOSE)
TEXT_MODULE = re.compile(r"text_model\.encoder\.layers\.\d+\..+|text_projection|text_model\.final_layer_norm")


def _text(part: str, name: str) -> tuple[str, str] | None:
    name = name.removeprefix("base_model.model.")
    module = dotted(name) if "." not in name else name
    if module.startswith("encoder."):  # transformers since 5.6 writes CLIP's text model without its first word
        module = f"text_model.{module}"
    return (part, module) if TEXT_MODULE.fullmatch(module) else None


@lru_cache(maxsize=65536)
def dotted(name: str) -> str:
    """A name with underscores for dots as it was: 'mid_block_attentions_0_proj_in' -> 'mid_block.attentions.0.proj_in'."""
    pieces, found, at = name.split("_"), [], 0
    while at < len(pieces):
        for width in (3, 2):
            word = "_".join(pieces[at:at + width])
            if word in WORDS and at + width <= len(pieces):
                break
        else:
            width = 1
        found.append("_".join(pieces[at:at + width]))
        at += width
    return ".".join(found)


def from_original(module: str) -> str | None:
    """A U-Net module's original name as diffusers' ('input_blocks.3.0.op' -> 'down_blocks.0.downsamplers.0.conv'), or None."""
    if module in BASIC:
        return BASIC[module]
    if found := re.fullmatch(r"input_blocks\.(\d+)\.0\.op", module):
        return f"down_blocks.{int(found[1]) // 3 - 1}.downsamplers.0.conv"
    if found := re.fullmatch(r"output_blocks\.(\d+)\.[12]\.conv", module):
        return f"up_blocks.{int(found[1]) // 3}.upsamplers.0.conv"
    if found := re.fullmatch(r"middle_block\.([012])\.(.+)", module):
        kind = "attentions.0" if found[1] == "1" else f"resnets.{int(found[1]) // 2}"
        return f"mid_block.{kind}.{RESNET.get(found[2], found[2])}"
    if found := re.fullmatch(r"(input|output)_blocks\.(\d+)\.([01])\.(.+)", module):
        level, layer = divmod(int(found[2]) - (found[1] == "input"), 3)
        side, kind = ("down", "up")[found[1] == "output"], ("resnets", "attentions")[int(found[3])]
        return f"{side}_blocks.{level}.{kind}.{layer}.{RESNET.get(found[4], found[4])}"
    return None


ORIGINAL_RESNET = {ours: original for original, ours in RESNET.items()}
ORIGINAL_BASIC = {ours: original for original, ours in BASIC.items()}


def to_original(module: str, attention_below: bool = True) -> str | None:
    """A U-Net module's diffusers name as the original one, or None where there is none.

    attention_below: whether the level of an upsampler has attention, which moves it one place on.
    """
    if module in ORIGINAL_BASIC:
        return ORIGINAL_BASIC[module]
    if found := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv", module):
        return f"input_blocks.{3 * int(found[1]) + 3}.0.op"
    if found := re.fullmatch(r"up_blocks\.(\d+)\.upsamplers\.0\.conv", module):
        return f"output_blocks.{3 * int(found[1]) + 2}.{2 if attention_below else 1}.conv"
    if found := re.fullmatch(r"mid_block\.(attentions|resnets)\.(\d+)\.(.+)", module):
        block = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{block}.{ORIGINAL_RESNET.get(found[3], found[3])}"
    if found := re.fullmatch(r"(down|up)_blocks\.(\d+)\.(attentions|resnets)\.(\d+)\.(.+)", module):
        number = 3 * int(found[2]) + int(found[4]) + (found[1] == "down")
        side = "input" if found[1] == "down" else "output"
        inner = found[5] if found[3] == "attentions" else ORIGINAL_RESNET.get(found[5], found[5])
        return f"{side}_blocks.{number}.{int(found[3] == 'attentions')}.{inner}"
    return None


def file_module(part: str, module: str) -> str:
    """A module's name as files have it: text encoders' with `text_model.` in front, whatever transformers calls it here."""
    if part == NETWORK or module.startswith(("text_model.", "text_projection")):
        return module
    return f"text_model.{module}"


def module_here(part: str, module: str) -> str:
    """The same for the installed transformers: since 5.6 `CLIPTextModel` is flat, `CLIPTextModelWithProjection` is not."""
    return module.removeprefix("text_model.") if part == TEXT_1 and flat_text_model() else module


@cache
def flat_text_model() -> bool:
    """Whether the installed transformers' CLIPTextModel has no inner `text_model`."""
    try:
        major, minor = (int(number) for number in version("transformers").split(".")[:2])
    except (PackageNotFoundError, ValueError):
        return True
    return (major, minor) >= (5, 6)
