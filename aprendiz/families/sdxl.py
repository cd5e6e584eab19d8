"""Stable Diffusion XL (Podell et al. 2023), its derivatives that predict v included.

Shapes: B batch, C latent channels (4), H W latent size (an eighth of the picture's), N chunks, T tokens, D features (768 + 1280).
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
class SdxlTokens(Tensors):
    """Token ids of CLIP-L (1) and OpenCLIP-G (2), padded differently, and the weights of their text states; chunks of 77."""

    ids_1_BNT: torch.Tensor
    ids_2_BNT: torch.Tensor
    weights_BNT: torch.Tensor


@dataclass(frozen=True)
class SdxlConditioning(Tensors):
    """Text states of both encoders side by side, the second's pooled state and, once collated, the picture's sizes."""

    text_BTD: torch.Tensor
    pooled_BD: torch.Tensor
    size_B6: torch.Tensor | None = None


class Sdxl(Family):
    """One U-Net whose attention begins at its second level; two text encoders, of each the last layer but one, without norm."""

    name = "sdxl"
    title = "Stable Diffusion XL"
    order = 10
    offers = frozenset({"text_encoders", "embeddings", "cross_attention", "control_branch"})
    embedding_keys = ("clip_l", "clip_g")
    bucket_step = 64
    resolution = 1024
    Tokens = SdxlTokens
    Conditioning = SdxlConditioning

    def recognise(self, keys: Mapping[str, tuple[int, ...]]) -> bool:
        bare = {key.removeprefix("model.diffusion_model."): shape for key, shape in keys.items()}
        first = bare.get("input_blocks.0.0.weight") or bare.get("conv_in.weight") or ()
        labelled = "label_emb.0.0.weight" in bare or "add_embedding.linear_1.weight" in bare
        early = any(key.startswith(("input_blocks.1.1.", "down_blocks.0.attentions.")) for key in bare)
        refiner = bare.get("input_blocks.0.0.weight", bare.get("conv_in.weight", (0,)))[0] == 384
        in_time = any("time_stack" in key or "temporal" in key or "motion_modules" in key for key in bare)
        return len(first) == 4 and first[1] == 4 and labelled and not early and not refiner and not in_time

    def layout(self) -> Layout:
        from ..formats.original import Layout, TextLayout
        first = TextLayout(prefix="conditioner.embedders.0.transformer.", folder="text_encoder", tokenizer="tokenizer",
                           openclip=False, activation="quick_gelu", pad="<|endoftext|>")
        second = TextLayout(prefix="conditioner.embedders.1.model.", folder="text_encoder_2", tokenizer="tokenizer_2",
                            openclip=True, activation="gelu", pad="!", projection=True)
        return Layout(texts=(first, second), vae_scale=0.13025, head_width=64, markers=True)

    def load(self, source: Source, settings: BaseSettings, dtype: torch.dtype) -> Base:
        from ..formats.loading import load
        return load(self, self.layout(), source, settings, dtype)

    def encode_images(self, base: Base, pixels_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        from ..nets.unet import encode_images
        return encode_images(base.vae, pixels_B3HW)

    def decode(self, base: Base, latents_BCHW: torch.Tensor) -> torch.Tensor:
        from ..nets.unet import decode
        return decode(base.vae, latents_BCHW)

    def tokenize(self, base: Base, prompts: Sequence[str], max_tokens: int | None = None, weighted: bool = True) -> SdxlTokens:
        from ..nets.clip import tokenize
        ids_1, weights = tokenize(base.tokenizers[0], prompts, max_tokens, weighted, base.words)
        ids_2, weights_2 = tokenize(base.tokenizers[1], prompts, max_tokens, weighted, base.words)
        assert weights.equal(weights_2)  # one vocabulary, and as many tokens added to one as to the other
        return SdxlTokens(ids_1, ids_2, weights)

    def count_tokens(self, caption: str) -> int:
        from ..formats import clip_vocab
        from ..nets import clip
        return clip.count_tokens(clip_vocab.counter(), caption, weighted=False)

    def encode_tokens(self, base: Base, tokens: Tensors) -> SdxlConditioning:
        import torch

        from ..nets.clip import encode, pool
        assert isinstance(tokens, SdxlTokens)
        layer = base.clip_skip or 2
        text_1, _ = encode(base.text_encoders[0], tokens.ids_1_BNT, tokens.weights_BNT, layer, normalise=False)
        text_2, last = encode(base.text_encoders[1], tokens.ids_2_BNT, tokens.weights_BNT, layer, normalise=False)
        pooled_BD = pool(base.text_encoders[1], last, tokens.ids_2_BNT[:, 0], base.tokenizers[1].eos_token_id)
        return SdxlConditioning(torch.cat([text_1, text_2], -1), pooled_BD)

    def collate(self, states: Sequence[Tensors], sizes: Sequence[PictureSize]) -> SdxlConditioning:
        import torch

        from ..nets.clip import stretch
        text_BTD = torch.cat(stretch([state.tensors()["text_BTD"] for state in states]))
        pooled_BD = torch.cat([state.tensors()["pooled_BD"] for state in states])
        # Height before width, top before left.
        told = [[*size.original[::-1], *size.crop[::-1], *size.target[::-1]] for size in sizes]
        return SdxlConditioning(text_BTD, pooled_BD, torch.tensor(told, dtype=torch.float32, device=text_BTD.device))

    def predict(self, base: Base, noisy_BCHW: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Tensors,
                residuals: Any = None) -> torch.Tensor:
        from ..nets.unet import predict
        assert isinstance(conditioning, SdxlConditioning) and conditioning.size_B6 is not None
        added = {"text_embeds": conditioning.pooled_BD, "time_ids": conditioning.size_B6}
        return predict(base.network, noisy_BCHW, timesteps_B, conditioning.text_BTD, added, residuals)

    def control_branch(self, base: Base, hint_widths: Sequence[int] = (16, 32, 96, 256), copied: bool = True) -> torch.nn.Module:
        from ..nets.controlnet import branch_of
        return branch_of(base.network, hint_widths, copied)

    def control(self, branch: torch.nn.Module, noisy_BCHW: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Tensors,
                condition_B3HW: torch.Tensor) -> Any:
        from ..nets.controlnet import residuals
        assert isinstance(conditioning, SdxlConditioning) and conditioning.size_B6 is not None
        added = {"text_embeds": conditioning.pooled_BD, "time_ids": conditioning.size_B6}
        return residuals(branch, noisy_BCHW, timesteps_B, conditioning.text_BTD, condition_B3HW, added)

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
        from ..formats.names import to_original
        from ..nets.clip import lora_name
        if part != "network":
            return lora_name(f"lora_te{part[-1]}_", module)
        # The last level, which has no attention, has no upsampler either.
        original = to_original(module)
        assert original is not None, module
        return "lora_unet_" + original.replace(".", "_")

    def tiny(self, seed: int = 0) -> Base:
        from diffusers import UNet2DConditionModel

        from ..nets import tiny
        with tiny.seeded(seed):
            network = UNet2DConditionModel(
                sample_size=8, block_out_channels=(32, 64, 64), cross_attention_dim=64, attention_head_dim=[2, 4, 4],
                norm_num_groups=8, use_linear_projection=True, transformer_layers_per_block=[1, 1, 2],
                addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=32 + 6 * 8,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"))
            encoders = [tiny.text_encoder("quick_gelu"), tiny.text_encoder("gelu", projection=True)]
            return tiny.base(self, network, encoders, ["<|endoftext|>", "!"], "epsilon")


FAMILY = Sdxl()
