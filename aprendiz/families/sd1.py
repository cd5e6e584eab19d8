"""Stable Diffusion 1.x (Rombach et al. 2022), and `micro`, which is built like it.

Shapes: B batch, C latent channels (4), H W latent size (an eighth of the picture's), N chunks, T tokens, D features (768).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import Base, Family, PictureSize, Source, Tensors

if TYPE_CHECKING:
    import torch

    from ..formats.original import Layout
    from ..settings import BaseSettings


@dataclass(frozen=True)
class Sd1Tokens(Tensors):
    """CLIP-L's token ids and the weights of their text states, in chunks of 77."""

    ids_BNT: torch.Tensor
    weights_BNT: torch.Tensor


@dataclass(frozen=True)
class Sd1Conditioning(Tensors):
    """Text states, chunk after chunk."""

    text_BTD: torch.Tensor


class Sd1(Family):
    """One U-Net with convolutions around its attention, one text encoder (CLIP-L) of which the last layer counts."""

    name = "sd1"
    title = "Stable Diffusion 1.x"
    order = 30
    offers = frozenset({"text_encoders", "embeddings", "cross_attention", "control_branch"})
    embedding_keys = ("emb_params",)
    bucket_step = 64
    resolution = 512
    Tokens = Sd1Tokens
    Conditioning = Sd1Conditioning

    def recognise(self, keys: Mapping[str, tuple[int, ...]]) -> bool:
        bare = {key.removeprefix("model.diffusion_model."): shape for key, shape in keys.items()}
        first = bare.get("input_blocks.0.0.weight") or bare.get("conv_in.weight") or ()
        inner = bare.get("input_blocks.1.1.proj_in.weight") or bare.get("down_blocks.0.attentions.0.proj_in.weight") or ()
        labelled = any(key.startswith(("label_emb.", "add_embedding.", "class_embedding.")) for key in bare)
        in_time = any("time_stack" in key or "temporal" in key or "motion_modules" in key for key in bare)
        return len(first) == 4 and first[1] == 4 and len(inner) == 4 and not labelled and not in_time

    def layout(self) -> Layout:
        from ..formats.original import Layout, TextLayout
        text = TextLayout(prefix="cond_stage_model.transformer.", folder="text_encoder", tokenizer="tokenizer", openclip=False,
                          activation="quick_gelu", pad="<|endoftext|>")
        return Layout(texts=(text,), vae_scale=0.18215, heads=8)

    def load(self, source: Source, settings: BaseSettings, dtype: torch.dtype) -> Base:
        from ..formats.loading import load
        return load(self, self.layout(), source, settings, dtype)

    def encode_images(self, base: Base, pixels_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from ..nets.unet import encode_images
        return encode_images(base.vae, pixels_B3HW)

    def decode(self, base: Base, latents_BCHW: torch.Tensor) -> torch.Tensor:
        from ..nets.unet import decode
        return decode(base.vae, latents_BCHW)

    def tokenize(self, base: Base, prompts: Sequence[str], max_tokens: int | None = None, weighted: bool = True) -> Sd1Tokens:
        from ..nets.clip import tokenize
        return Sd1Tokens(*tokenize(base.tokenizers[0], prompts, max_tokens, weighted, base.words))

    def count_tokens(self, caption: str) -> int:
        from ..formats import clip_vocab
        from ..nets import clip
        return clip.count_tokens(clip_vocab.counter(), caption, weighted=False)

    def encode_tokens(self, base: Base, tokens: Tensors) -> Sd1Conditioning:
        from ..nets.clip import encode
        assert isinstance(tokens, Sd1Tokens)
        text_BTD, _ = encode(base.text_encoders[0], tokens.ids_BNT, tokens.weights_BNT, base.clip_skip or 1, normalise=True)
        return Sd1Conditioning(text_BTD)

    def collate(self, states: Sequence[Tensors], sizes: Sequence[PictureSize]) -> Sd1Conditioning:
        import torch

        from ..nets.clip import stretch
        return Sd1Conditioning(torch.cat(stretch([state.tensors()["text_BTD"] for state in states])))

    def predict(self, base: Base, noisy_BCHW: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Tensors,
                residuals: Any = None) -> torch.Tensor:
        from ..nets.unet import predict
        assert isinstance(conditioning, Sd1Conditioning)
        return predict(base.network, noisy_BCHW, timesteps_B, conditioning.text_BTD, residuals=residuals)

    def control_branch(self, base: Base, hint_widths: Sequence[int] = (16, 32, 96, 256), copied: bool = True) -> torch.nn.Module:
        from ..nets.controlnet import branch_of
        return branch_of(base.network, hint_widths, copied)

    def control(self, branch: torch.nn.Module, noisy_BCHW: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Tensors,
                condition_B3HW: torch.Tensor) -> Any:
        from ..nets.controlnet import residuals
        assert isinstance(conditioning, Sd1Conditioning)
        return residuals(branch, noisy_BCHW, timesteps_B, conditioning.text_BTD, condition_B3HW)

    def latent_shape(self, base: Base, width: int, height: int) -> tuple[int, int, int]:
        return 4, height // 8, width // 8

    def blocks(self, base: Base) -> list[torch.nn.Module]:
        from ..nets.unet import blocks
        return blocks(base.network)

    def lora_targets(self, base: Base, targets: str) -> dict[str, list[str]]:
        from ..nets import clip, unet
        text = {f"text_encoder_{i}": clip.lora_targets(encoder, targets) for i, encoder in enumerate(base.text_encoders, 1)}
        return {"network": unet.lora_targets(base.network, targets)} | text

    def lora_name(self, part: str, module: str) -> str:
        from ..nets.clip import lora_name
        return "lora_unet_" + module.replace(".", "_") if part == "network" else lora_name("lora_te_", module)

    def tiny(self, seed: int = 0) -> Base:
        from diffusers import UNet2DConditionModel

        from ..nets import tiny
        with tiny.seeded(seed):
            network = UNet2DConditionModel(
                sample_size=8, block_out_channels=(32, 64), cross_attention_dim=32, attention_head_dim=[2, 4], norm_num_groups=8,
                down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"))
            return tiny.base(self, network, [tiny.text_encoder("quick_gelu")], ["<|endoftext|>"], "epsilon")


FAMILY = Sd1()
