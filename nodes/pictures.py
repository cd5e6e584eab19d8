"""Between ComfyUI's pictures (tensors, B H W C, 0 to 1) and PIL's, with torch at hand only inside the functions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps


def to_pil(images: Any) -> list[Image.Image]:
    """A batch of pictures as PIL has them, 8 bits; a single channel becomes grey."""
    import torch
    frames = (images.detach().cpu().clamp(0, 1) * 255).round().to(torch.uint8).numpy()
    return [Image.fromarray(frame.squeeze(-1) if frame.shape[-1] == 1 else frame) for frame in frames]


def to_tensor(pictures: Sequence[Image.Image]) -> Any:
    """Pictures as one batch; those of another size than the first are fitted into its size on white."""
    import numpy as np
    import torch
    first = pictures[0].size
    fitted = [one.convert("RGB") if one.size == first else ImageOps.pad(one.convert("RGB"), first, color="white")
              for one in pictures]
    return torch.from_numpy(np.stack([np.asarray(one, dtype=np.float32) / 255 for one in fitted]))


def open_rgb(file: Path) -> Image.Image:
    """A picture, whole in memory, its file closed."""
    with Image.open(file) as picture:
        return ImageOps.exif_transpose(picture).convert("RGB")


def thumbnails(files: Sequence[Path], side: int = 256) -> list[Image.Image]:
    """Pictures of one square size, for looking at; those that cannot be read are left out."""
    found = []
    for file in files:
        try:
            with Image.open(file) as picture:
                picture.draft("RGB", (side, side))
                found.append(ImageOps.pad(ImageOps.exif_transpose(picture).convert("RGB"), (side, side), color="white"))
        except (OSError, ValueError, SyntaxError):
            continue
    return found
