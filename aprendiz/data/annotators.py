"""Condition pictures that a trained model draws: soft edges, depth, normals, straight lines, segments, poses.

An optional extra: the code is controlnet-aux's or transformers', the weights lie in a folder of yours, and nothing is
downloaded. Each kind has a folder of its own inside (or all files lie in one):

    softedge  ControlNetHED.pth             normal  scannet.pt                 openpose  body_pose_model.pth, hand_pose_model.pth,
    pidi      table5_pidinet.pth            mlsd    mlsd_large_512_fp32.pth              facenet.pth
    depth     a transformers depth estimator (config.json, model.safetensors, preprocessor_config.json)
    seg       a transformers semantic segmentation model, likewise
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..errors import ModelError, Problem, ProblemsError
from .pictures import Pixels

if TYPE_CHECKING:
    from .conditions import Recipe


@dataclass(frozen=True)
class Annotator:
    """What draws one kind. library: that must be there; detector: its class; files: what its folder must hold."""

    library: str
    detector: str
    files: tuple[str, ...]


AUX = "controlnet_aux"
MORE = {"openpose": {"include_hand": True, "include_face": True}}  # what a detector is to draw beside the usual
KINDS = {
    "softedge": Annotator(AUX, "HEDdetector", ("ControlNetHED.pth",)),
    "pidi": Annotator(AUX, "PidiNetDetector", ("table5_pidinet.pth",)),
    "normal": Annotator(AUX, "NormalBaeDetector", ("scannet.pt",)),
    "mlsd": Annotator(AUX, "MLSDdetector", ("mlsd_large_512_fp32.pth",)),
    "openpose": Annotator(AUX, "OpenposeDetector", ("body_pose_model.pth", "hand_pose_model.pth", "facenet.pth")),
    "depth": Annotator("transformers", "", ("config.json", "preprocessor_config.json")),
    "seg": Annotator("transformers", "", ("config.json", "preprocessor_config.json")),
}


def problems(recipe: Recipe) -> list[Problem]:
    """Why this kind cannot be drawn here, in one sentence; nothing for kinds that need no model."""
    one = KINDS.get(recipe.kind)
    if one is None:
        return []
    where = "method.annotators"
    if recipe.annotators is None:
        return [Problem("The kind {kind} is drawn by a model. Name the folder of its files ({files}) with --annotators, or put "
                        "condition pictures beside the pictures.", {"kind": recipe.kind, "files": ", ".join(one.files)}, where)]
    missing = [name for name in one.files if not (home(recipe.kind, recipe.annotators) / name).is_file()]
    if missing:
        known = {"folder": str(home(recipe.kind, recipe.annotators)), "files": ", ".join(missing), "kind": recipe.kind}
        return [Problem("{folder} lacks {files}, which the kind {kind} needs. Put the files there, or name their folder with "
                        "--annotators.", known, where)]
    if importlib.util.find_spec(one.library) is None:
        return [Problem("The kind {kind} needs {library}, which is not installed. Install it with `pip install {package}`.",
                        {"kind": recipe.kind, "library": one.library, "package": one.library.replace("_", "-")}, where)]
    return []


def home(kind: str, folder: str) -> Path:
    """Where the files of a kind lie: in a folder of its name, else in the folder itself."""
    inner = Path(folder) / kind
    return inner if inner.is_dir() else Path(folder)


def annotate(rgb: Pixels, kind: str, folder: str | None) -> Pixels:
    """The condition picture that the kind's model draws. Raises ProblemsError where it is missing, ModelError where it fails."""
    from .conditions import Recipe
    found = problems(Recipe(kind=kind, annotators=folder))
    if found:
        raise ProblemsError(found)
    assert folder is not None
    try:
        drawn = detector(kind, str(home(kind, folder)))(rgb)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise ModelError("The model in {folder} could not draw the kind {kind}: {reason}.",
                         folder=str(home(kind, folder)), kind=kind, reason=str(error)) from error
    image = Image.fromarray(np.ascontiguousarray(drawn)).convert("RGB")
    size = (rgb.shape[1], rgb.shape[0])
    return np.asarray(image if image.size == size else image.resize(size, Image.Resampling.BILINEAR))


@cache
def detector(kind: str, folder: str) -> Callable[[Pixels], Pixels]:
    """The opened model, kept for the next picture."""
    if kind == "depth":
        return _depth(folder)
    if kind == "seg":
        return _segments(folder)
    return _aux(kind, folder)


def _aux(kind: str, folder: str) -> Callable[[Pixels], Pixels]:
    one = KINDS[kind]
    library: Any = importlib.import_module(one.library)
    made = getattr(library, one.detector).from_pretrained(folder)

    def draw(rgb: Pixels) -> Pixels:
        side = min(rgb.shape[:2])
        drawn = made(rgb, detect_resolution=side, image_resolution=side, output_type="np", **MORE.get(kind, {}))
        return np.asarray(drawn, dtype=np.uint8)

    return draw


def _depth(folder: str) -> Callable[[Pixels], Pixels]:
    """Near is bright, as MiDaS and its followers have it."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation
    processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True).eval()

    def draw(rgb: Pixels) -> Pixels:
        with torch.no_grad():
            depth = model(**processor(images=Image.fromarray(rgb), return_tensors="pt")).predicted_depth[0]
        low, high = depth.min(), depth.max()
        return np.asarray(((depth - low) / (high - low).clamp(min=1e-6) * 255).round().to(torch.uint8))

    return draw


def _segments(folder: str) -> Callable[[Pixels], Pixels]:
    """A colour for each class, always the same."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation
    processor: Any = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForSemanticSegmentation.from_pretrained(folder, local_files_only=True).eval()

    def draw(rgb: Pixels) -> Pixels:
        with torch.no_grad():
            classes = model(**processor(images=Image.fromarray(rgb), return_tensors="pt")).logits[0].argmax(0).numpy()
        return np.asarray(palette(int(model.config.num_labels))[classes])

    return draw


def palette(count: int) -> Pixels:
    """So many colours that are far apart, (count, 3): a number's bits spread over red, green and blue, as PASCAL VOC does."""
    colours = np.zeros((count, 3), np.uint8)
    for number in range(count):
        rest = number + 1  # no class is black
        for bit in range(7, -1, -1):
            for channel in range(3):
                colours[number, channel] |= ((rest >> channel) & 1) << bit
            rest >>= 3
    return colours
