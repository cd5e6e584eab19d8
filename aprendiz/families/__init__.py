"""The model families. A file here with a `FAMILY` is one; it appears in the menus, the docs and the tests by being there.

Files here import only the standard library at module level; torch, diffusers and transformers inside functions.

Shapes: B batch, C latent channels, H W latent height and width, T tokens, D features. Pixels are in [-1, 1]; latents are
normalised (unit variance, as the network was trained); `timesteps_B` are the network's own: integers 0..999 for diffusion,
t in [0, 1] with 1 = noise for flows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

    from ..formats.original import Layout
    from ..settings import BaseSettings


@dataclass(frozen=True)
class PictureSize:
    """Where a training picture comes from, in pixels: SDXL is told (Podell et al. 2023, section 2.2).

    original: (width, height) before anything. crop: (left, top) of what was cut, after resizing.
    target: (width, height) as trained.
    """

    original: tuple[int, int]
    crop: tuple[int, int]
    target: tuple[int, int]


@dataclass(frozen=True)
class Source:
    """What a file or folder turned out to be, found from its keys and headers alone, before anything heavy loads.

    parts: state-dict location by component. prediction: 'epsilon', 'v', 'flow' or None if the file does not say.
    """

    family: str
    path: Path
    kind: str                                   # "folder", "file"
    prediction: str | None = None
    zero_terminal_snr: bool = False
    resolution: int | None = None               # pixels, where it is known
    sha256: str | None = None                   # of the file, or of the folder's weights; None until asked for
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Base:
    """An opened base: frozen modules, their precision, and where they are.

    network: the U-Net or transformer. text_encoders, tokenizers: in order (empty once freed). schedule: the noise schedule as
    diffusers writes it in scheduler_config.json. clip_skip: None is the family's own. words: tokens of the words that were added
    to the vocabulary (`nets/embeddings.py`), by their name. refill: what reads a part's weights again, by the part's name, once
    they were let go; empty where the base came from no file.
    """

    family: Family
    source: Source
    network: torch.nn.Module
    vae: torch.nn.Module | None
    text_encoders: list[torch.nn.Module]
    tokenizers: list[Any]
    prediction: str                              # "epsilon", "v" or "flow"
    schedule: dict[str, Any]
    resolution: int                              # pixels, the base's own
    zero_terminal_snr: bool = False
    clip_skip: int | None = None
    words: dict[str, tuple[int, ...]] = field(default_factory=dict)
    refill: dict[str, Callable[[], None]] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the network's frozen weights."""
        return next(self.network.parameters()).dtype

    def parts(self) -> dict[str, torch.nn.Module]:
        """The modules by the names that methods and files use: network, text_encoder_1, text_encoder_2, vae."""
        found: dict[str, Any] = {"network": self.network}
        found |= {f"text_encoder_{i}": module for i, module in enumerate(self.text_encoders, 1)}
        return found | ({"vae": self.vae} if self.vae is not None else {})


@dataclass(frozen=True)
class Tensors:
    """A frozen bundle of tensors that the loop and the methods carry without looking inside; families subclass it.

    Every field is a tensor whose first dimension is the batch, or None.
    """

    def to(self, *where: Any, **how: Any) -> Any:
        """The same bundle elsewhere; arguments as `torch.Tensor.to` (a dtype leaves integers as they are)."""
        moved = {f.name: _move(getattr(self, f.name), where, how) for f in fields(self)}
        return replace(self, **moved)

    def rows(self, start: int, stop: int) -> Any:
        """Part of the batch."""
        return replace(self, **{name: tensor[start:stop] for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """The fields that are there, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def _move(tensor: torch.Tensor | None, where: tuple[Any, ...], how: dict[str, Any]) -> torch.Tensor | None:
    import torch
    if tensor is None:
        return None
    if not tensor.is_floating_point():
        where = tuple(w for w in where if not isinstance(w, torch.dtype))
        how = {k: v for k, v in how.items() if k != "dtype"}
    return tensor.to(*where, **how)


class Family:
    """What is special about one kind of model. Data where it can be, ten functions where it must.

    offers: parts that methods may need: 'text_encoders', 'embeddings', 'cross_attention', 'control_branch'.
    embedding_keys: the names of a word's vectors in an embedding file, one for each text encoder.
    bucket_step: pixels. prediction: of models whose files do not say ('epsilon', 'v', 'flow'); None: the person must.
    Tokens and Conditioning are the family's own subclasses of `Tensors`.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    order: ClassVar[int] = 100
    offers: ClassVar[frozenset[str]] = frozenset()
    embedding_keys: ClassVar[tuple[str, ...]] = ()
    bucket_step: ClassVar[int] = 64
    resolution: ClassVar[int] = 512
    prediction: ClassVar[str | None] = "epsilon"
    Tokens: ClassVar[type[Tensors]]
    Conditioning: ClassVar[type[Tensors]]

    def recognise(self, keys: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether tensor names and shapes (of a single file, or of the network in a folder) are of this family."""
        raise NotImplementedError

    def load(self, source: Source, settings: BaseSettings, dtype: torch.dtype) -> Base:
        """Open it on the CPU, frozen, in evaluation mode; the network in `dtype`. Raises ModelError."""
        raise NotImplementedError

    def encode_images(self, base: Base, pixels_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation of the latents, normalised."""
        raise NotImplementedError

    def decode(self, base: Base, latents_BCHW: torch.Tensor) -> torch.Tensor:
        """Pixels in [-1, 1] of normalised latents."""
        raise NotImplementedError

    def tokenize(self, base: Base, prompts: Sequence[str], max_tokens: int | None = None, weighted: bool = True) -> Tensors:
        """Token ids and weights of prompts, in chunks, `(word:1.2)` and `base.words` understood; padded to one number of chunks.

        Prompts longer than `max_tokens` are cut; None cuts nothing. Without `weighted`, brackets are plain characters.
        """
        raise NotImplementedError

    def count_tokens(self, caption: str) -> int:
        """Tokens of a caption, begin and end not counted, without a base."""
        raise NotImplementedError

    def encode_tokens(self, base: Base, tokens: Tensors) -> Tensors:
        """Text states of tokens; carries gradients where the encoders' parameters ask for them."""
        raise NotImplementedError

    def collate(self, states: Sequence[Tensors], sizes: Sequence[PictureSize]) -> Tensors:
        """One batch of text states of any length and number of rows, with what the network is told of the pictures' sizes."""
        raise NotImplementedError

    def predict(self, base: Base, noisy_BCHW: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Tensors,
                residuals: Any = None) -> torch.Tensor:
        """What the network predicts; the family alone knows its signs, its time and its packing."""
        raise NotImplementedError

    def control_branch(self, base: Base, hint_widths: Sequence[int] = (16, 32, 96, 256), copied: bool = True) -> torch.nn.Module:
        """A control branch for the base's network, in float32, its shared layers copied from it; of families that offer one."""
        raise NotImplementedError

    def control(self, branch: torch.nn.Module, noisy_BCHW: torch.Tensor, timesteps_B: torch.Tensor, conditioning: Tensors,
                condition_B3HW: torch.Tensor) -> Any:
        """What the branch has to add for these condition pictures: the `residuals` of `predict`."""
        raise NotImplementedError

    def latent_shape(self, base: Base, width: int, height: int) -> tuple[int, int, int]:
        """(C, H, W) of the latents of a picture of this size in pixels."""
        raise NotImplementedError

    def blocks(self, base: Base) -> list[torch.nn.Module]:
        """The network's blocks in order, for checkpointing, compiling and streaming."""
        raise NotImplementedError

    def lora_targets(self, base: Base, targets: str) -> dict[str, list[str]]:
        """Module names by part that a LoRA of this reach ('attention', 'attention+ff', 'all') wraps."""
        raise NotImplementedError

    def lora_name(self, part: str, module: str) -> str:
        """The name of a module's LoRA in this family's default file layout: 'lora_unet_...'."""
        raise NotImplementedError

    def layout(self) -> Layout | None:
        """How it stands in a single file of the original layout; None where it has no such layout."""
        return None

    def tiny(self, seed: int = 0) -> Base:
        """A random miniature, in float32 on the CPU, for tests."""
        raise NotImplementedError
