"""A family that is no U-Net: a miniature rectified-flow transformer, so that nothing outside a family file counts on U-Nets.

Its latents are packed in 2 x 2 patches, its image tokens carry position ids, its texts are of any length with a mask, it is told
a guidance, its times are 0 to 1 (1 = noise) and shift with the picture's size, and its file is one of its own layout.
Shapes: B batch, C latent channels (4), H W latent size (an eighth of the picture's), P packed image tokens, T text, D features.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from aprendiz.families import Base, Family, PictureSize, Source, Tensors
from aprendiz.settings import BaseSettings

WIDTH, HEADS, CHANNELS, END = 32, 4, 4, 256
SCHEDULE = {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15,
            "base_image_seq_len": 4, "max_image_seq_len": 64}


@dataclass(frozen=True)
class Tokens(Tensors):
    """Bytes of each text and the end, padded; true where there is a byte."""

    ids_BT: Tensor
    mask_BT: Tensor


@dataclass(frozen=True)
class Conditioning(Tensors):
    """Text states with their mask, their mean, and the guidance that the network is told."""

    text_BTD: Tensor
    mask_BT: Tensor
    pooled_BD: Tensor
    guidance_B: Tensor


def waves(values: Tensor, width: int) -> Tensor:
    """Sines and cosines of numbers: (...) to (..., width)."""
    steps = torch.exp(-math.log(10000) * torch.arange(width // 2, device=values.device) / (width // 2))
    angles = values[..., None].float() * steps
    return torch.cat([angles.sin(), angles.cos()], -1)


class Block(nn.Module):
    """Attention over text and image together, then feed-forward, both modulated by the time."""

    def __init__(self) -> None:
        super().__init__()
        self.modulation = nn.Linear(WIDTH, 2 * WIDTH)
        self.norm = nn.LayerNorm(WIDTH, elementwise_affine=False)
        self.to_q, self.to_k, self.to_v, self.to_out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, tokens_BTD: Tensor, time_BD: Tensor, mask_BT: Tensor) -> Tensor:
        scale, shift = self.modulation(time_BD)[:, None].chunk(2, -1)
        x = self.norm(tokens_BTD) * (1 + scale) + shift
        q, k, v = (layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2) for layer in (self.to_q, self.to_k, self.to_v))
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_BT[:, None, None, :])
        tokens_BTD = tokens_BTD + self.to_out(attended.transpose(1, 2).flatten(2))
        return tokens_BTD + self.down(F.gelu(self.up(self.norm(tokens_BTD))))


class Transformer(nn.Module):
    """The network: packed patches and text states in, packed velocities out."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_in, self.text_in = nn.Linear(4 * CHANNELS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.time_in, self.guidance_in, self.pooled_in = (nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.patch_out = nn.Linear(WIDTH, 4 * CHANNELS)

    def forward(self, packed_BPD: Tensor, positions_P2: Tensor, t_B: Tensor, conditioning: Conditioning) -> Tensor:
        dtype = packed_BPD.dtype
        time = self.time_in(waves(t_B * 1000, WIDTH).to(dtype)) + self.pooled_in(conditioning.pooled_BD.to(dtype))
        time = time + self.guidance_in(waves(conditioning.guidance_B * 1000, WIDTH).to(dtype))
        places = torch.cat([waves(positions_P2[:, 0], WIDTH // 2), waves(positions_P2[:, 1], WIDTH // 2)], -1).to(dtype)
        text = self.text_in(conditioning.text_BTD.to(dtype))
        tokens = torch.cat([text, self.patch_in(packed_BPD) + places], 1)
        mask = torch.cat([conditioning.mask_BT, conditioning.mask_BT.new_ones(packed_BPD.shape[:2])], 1)
        for block in self.blocks:
            tokens = block(tokens, time, mask)
        return self.patch_out(tokens[:, text.shape[1]:])


class TextEncoder(nn.Module):
    """Each byte's state, knowing those before it."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(END + 1, WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
        states = self.embedding(ids_BT) * mask_BT[..., None]
        so_far = states.cumsum(1) / torch.arange(1, states.shape[1] + 1, device=states.device)[:, None]
        return (states + self.out(F.gelu(self.mix(so_far)))) * mask_BT[..., None]


class TinyFlow(Family):
    """The miniature; see above."""

    name = "tiny_flow"
    title = "Tiny rectified flow"
    order = 900
    offers = frozenset({"text_encoders"})
    bucket_step = 16
    resolution = 64
    prediction = "flow"
    Tokens = Tokens
    Conditioning = Conditioning

    def recognise(self, keys: Mapping[str, tuple[int, ...]]) -> bool:
        return "network.patch_in.weight" in keys and "network.guidance_in.weight" in keys

    def load(self, source: Source, settings: BaseSettings, dtype: torch.dtype) -> Base:
        from safetensors.torch import load_file
        base = self.tiny()
        state = load_file(source.path)
        for part, module in base.parts().items():
            mine = {name: tensor for name, tensor in state.items() if name.startswith(f"{part}.")}
            module.load_state_dict({name[len(part) + 1:]: tensor for name, tensor in mine.items()})
        base.network.to(dtype)
        return base

    def save(self, base: Base, file: Path) -> None:
        """Write what `load` reads."""
        from safetensors.torch import save_file
        parts = base.parts().items()
        save_file({f"{part}.{name}": tensor for part, module in parts for name, tensor in module.state_dict().items()}, file)

    def encode_images(self, base: Base, pixels_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        assert base.vae is not None
        with torch.no_grad():
            found = base.vae.encode(pixels_B3HW).latent_dist
        scale, shift = base.vae.config.scaling_factor, base.vae.config.shift_factor
        return (found.mean - shift) * scale, found.std * scale

    def decode(self, base: Base, latents_BCHW: Tensor) -> Tensor:
        assert base.vae is not None
        scale, shift = base.vae.config.scaling_factor, base.vae.config.shift_factor
        return base.vae.decode(latents_BCHW.float() / scale + shift, return_dict=False)[0].clamp(-1, 1)

    def tokenize(self, base: Base, prompts: Sequence[str], max_tokens: int | None = None, weighted: bool = True) -> Tokens:
        rows = [[*prompt.encode()[:max_tokens], END] for prompt in prompts]
        length = max(map(len, rows))
        ids = torch.tensor([row + [END] * (length - len(row)) for row in rows])
        return Tokens(ids, torch.tensor([[i < len(row) for i in range(length)] for row in rows]))

    def encode_tokens(self, base: Base, tokens: Tensors) -> Conditioning:
        assert isinstance(tokens, Tokens)
        encoder = base.text_encoders[0]
        place = next(encoder.parameters()).device
        ids, mask = tokens.ids_BT.to(place), tokens.mask_BT.to(place)
        states = encoder(ids, mask)
        return Conditioning(states, mask, states.sum(1) / mask.sum(1, keepdim=True), states.new_ones(len(states)))

    def collate(self, states: Sequence[Tensors], sizes: Sequence[PictureSize]) -> Conditioning:
        length = max(state.tensors()["text_BTD"].shape[1] for state in states)
        joined = {}
        for name in ("text_BTD", "mask_BT", "pooled_BD", "guidance_B"):
            rows = [state.tensors()[name] for state in states]
            if name in ("text_BTD", "mask_BT"):
                rows = [torch.cat([row, row.new_zeros(len(row), length - row.shape[1], *row.shape[2:])], 1) for row in rows]
            joined[name] = torch.cat(rows)
        return Conditioning(**joined)

    def predict(self, base: Base, noisy_BCHW: Tensor, timesteps_B: Tensor, conditioning: Tensors,
                residuals: Any = None) -> Tensor:
        assert isinstance(conditioning, Conditioning)
        height, width = noisy_BCHW.shape[-2] // 2, noisy_BCHW.shape[-1] // 2
        packed = F.pixel_unshuffle(noisy_BCHW.to(base.dtype), 2).flatten(2).transpose(1, 2)
        rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        positions = torch.stack([rows.flatten(), columns.flatten()], -1).to(noisy_BCHW.device)
        velocity = base.network(packed, positions, timesteps_B, conditioning)
        return F.pixel_shuffle(velocity.transpose(1, 2).unflatten(2, (height, width)), 2).to(noisy_BCHW.dtype)

    def latent_shape(self, base: Base, width: int, height: int) -> tuple[int, int, int]:
        return CHANNELS, height // 8, width // 8

    def blocks(self, base: Base) -> list[nn.Module]:
        return list(base.network.blocks)  # type: ignore[arg-type]

    def lora_targets(self, base: Base, targets: str) -> dict[str, list[str]]:
        ends = ("to_q", "to_k", "to_v", "to_out") if targets == "attention" else ("to_q", "to_k", "to_v", "to_out", "up", "down")
        network = [name for name, _ in base.network.named_modules() if name.startswith("blocks.") and name.split(".")[-1] in ends]
        text = [] if not base.text_encoders else ["mix"] if targets == "attention" else ["mix", "out"]
        return {"network": network} | {f"text_encoder_{i}": list(text) for i, _ in enumerate(base.text_encoders, 1)}

    def lora_name(self, part: str, module: str) -> str:
        return ("lora_unet_" if part == "network" else "lora_te1_") + module.replace(".", "_")

    def tiny(self, seed: int = 0) -> Base:
        from diffusers import AutoencoderKL
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            vae = AutoencoderKL(
                block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_channels=CHANNELS,
                scaling_factor=0.3611, shift_factor=0.1159, use_quant_conv=False, use_post_quant_conv=False,
                down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4)
            network, encoder = Transformer(), TextEncoder()
        for module in (vae, network, encoder):
            module.requires_grad_(False).eval()
        source = Source(self.name, Path("tiny-flow"), "memory", "flow", resolution=64)
        return Base(self, source, network, vae, [encoder], [None], "flow", dict(SCHEDULE), resolution=64)


FAMILY = TinyFlow()
