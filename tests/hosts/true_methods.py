"""Random embeddings and ControlNets of the true shapes, written by us as a training writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import true_checkpoint
import true_lora
from PIL import Image

from aprendiz.formats import controlnet, embedding

WIDTHS = {"sd1": {"emb_params": 768}, "sd2": {"emb_params": 1024}, "sdxl": {"clip_l": 768, "clip_g": 1280}}
TENSORS = {"sd1": 340, "sd2": 340, "sdxl": 844}
VECTORS = 3


def write_embedding(family: str, file: Path, as_pt: bool = False) -> Path:
    """A word of three vectors, as long as a true table's."""
    generator = torch.Generator().manual_seed(5)
    vectors = {key: torch.randn(VECTORS, width, generator=generator) * 0.4 for key, width in WIDTHS[family].items()}
    return embedding.write_pt(file, vectors, 3, "true", None) if as_pt else embedding.write(file, vectors, {})


def write_controlnet(family: str, file: Path, layout: str = "diffusers") -> Path:
    """A ControlNet whose outputs are not zero, in half precision: 0.7 GB, SDXL's 2.5 GB. config.json lies beside it."""
    with torch.device("meta"):
        base = true_lora.true_base(family)
        branch = base.family.control_branch(base, copied=False)
    numbers = torch.randn(1 << 26, generator=torch.Generator().manual_seed(3)).half()
    state = true_checkpoint.random_state(branch, numbers, 7)
    for name, tensor in state.items():
        if name.startswith(controlnet.HINT) and tensor.ndim > 1:
            tensor /= tensor[0].numel() ** 0.5  # no table, whatever its name says
    controlnet.write(file, state, branch, {controlnet.KIND: "canny"}, layout=layout)
    return file


def write_lines(file: Path, side: int = 64) -> Path:
    """A condition picture."""
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[side // 4] = pixels[:, side // 3] = 255
    Image.fromarray(pixels).save(file)
    return file
