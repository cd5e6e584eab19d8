"""Generate, latent walk, grid, inspect: what the command line does, with ComfyUI's pictures at both ends."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..aprendiz.errors import Problem, ProblemsError
from ..aprendiz.views.panel import NO_CONTROL, NO_EMBEDDING, NO_LORA, NO_PROMPT, UNEVEN
from . import host, pictures
from .commands import ask

FLAGS = {"negative_prompt": "--negative", "sampler": "--sampler", "sampler_steps": "--steps", "guidance": "--guidance"}
EMBEDDINGS = ("", ".safetensors", ".pt", ".bin")
CALLED = re.compile(r"\bembedding:([^\s,:()\[\]<>{}|]+)")  # as stock text encoder nodes call an embedding
BASE_FLAGS = {"path": "--base", "vae": "--vae", "text_encoder": "--text-encoder", "prediction": "--prediction",
              "clip_skip": "--clip-skip"}


def lora_file(name: str) -> Path:
    """The file of a LoRA by the name that lists show, or by its path. Raises ProblemsError."""
    found = host.find("loras", name) if name else None
    if found is None and name and Path(name).is_file():
        found = Path(name)
    if found is None:
        raise ProblemsError([Problem(NO_LORA, {"name": name}, "lora")])
    return found


def called(text: str, found: dict[str, Path]) -> str:
    """A prompt as the command line takes it, `embedding:name` by its name alone; its file is noted in `found`.

    Raises ProblemsError where there is no such file.
    """

    def take(match: re.Match[str]) -> str:
        name = match.group(1)
        file = next((file for ending in EMBEDDINGS if (file := host.find("embeddings", name + ending))), None)
        if file is None:
            raise ProblemsError([Problem(NO_EMBEDDING, {"name": name}, "prompt")])
        found[name] = file
        return file.stem

    return CALLED.sub(take, text)


def generate(base: Mapping[str, Any], loras: Sequence[tuple[str, float]], given: Mapping[str, Any], shown: Mapping[str, Any],
             node: str | None) -> Any:
    """Pictures as one batch; shown: the wired `image`, `mask` and `control_image`. Raises what the command line could not do."""
    with _scratch() as folder:
        arguments = ["generate", *_common(base, loras, given, [str(given["prompt"])]), "--seed", str(given["seed"]),
                     "--count", str(given["count"]), "--out", str(folder / "drawn") + "/",
                     *_start(folder, given, shown), *_control(folder, given, shown)]
        (folder / "drawn").mkdir()
        _run(arguments, node)
        return pictures.to_tensor([pictures.open_rgb(file) for file in sorted((folder / "drawn").glob("*.png"))])


def _start(folder: Path, given: Mapping[str, Any], shown: Mapping[str, Any]) -> list[str]:
    """Flags of a picture to start from."""
    if shown.get("image") is None:
        return []
    start = pictures.to_pil(shown["image"])[0]
    start.save(folder / "start.png")
    arguments = ["--image", str(folder / "start.png"), "--strength", str(given["strength"])]
    mask = shown.get("mask")
    if mask is not None:
        whole = pictures.to_pil(mask.reshape((-1, mask.shape[-2], mask.shape[-1]))[:1].unsqueeze(-1))[0].convert("L")
        whole.resize(start.size).save(folder / "mask.png")
        arguments += ["--mask", str(folder / "mask.png")]
    return arguments


def _control(folder: Path, given: Mapping[str, Any], shown: Mapping[str, Any]) -> list[str]:
    """Flags of a ControlNet. Raises ProblemsError."""
    name, image = given.get("control_net"), shown.get("control_image")
    if not name and image is None:
        return []
    file = host.find("controlnet", name) if name else None
    if file is None or image is None:
        raise ProblemsError([Problem(NO_CONTROL, {}, "control_net")])
    pictures.to_pil(image)[0].save(folder / "control.png")
    return ["--controlnet", f"{file}:{given['control_strength']:g}", "--control", str(folder / "control.png"),
            "--control-start", str(given["control_start"]), "--control-end", str(given["control_end"])]


def walk(base: Mapping[str, Any], loras: Sequence[tuple[str, float]], given: Mapping[str, Any],
         node: str | None) -> tuple[Any, Path]:
    """The frames as one batch, and the file in the output folder."""
    prompts = [line.strip() for line in str(given["prompts"]).splitlines() if line.strip()]
    if not prompts:
        raise ProblemsError([Problem(NO_PROMPT, {}, "prompts")])
    target = host.output_folder() / f"aprendiz-walk-{secrets.token_hex(4)}.{given['format']}"
    arguments = ["walk", *_common(base, loras, given, prompts), "--seeds", str(given["seeds"]), "--frames", str(given["frames"]),
                 "--frames-per-second", str(given["frames_per_second"]), "--out", str(target)]
    _run(arguments, node)
    return frames(target, float(given["frames_per_second"])), target


def frames(file: Path, frames_per_second: float) -> Any:
    """The frames of a moving picture as one batch; None of a film. Equal ones after each other are stored as one that lasts."""
    from PIL import Image, ImageSequence
    if file.suffix == ".mp4":
        return None
    found: list[Any] = []
    with Image.open(file) as moving:
        for frame in ImageSequence.Iterator(moving):
            shown = frame.convert("RGB")
            found += [shown] * max(1, round(float(frame.info.get("duration", 0)) * frames_per_second / 1000))
    return pictures.to_tensor(found)


def grid(before: Any, after: Any, labels: str, heading: str) -> Any:
    """Pairs of pictures with their labels, as one picture."""
    from ..aprendiz.evaluate.grid import before_after
    left, right = pictures.to_pil(before), pictures.to_pil(after)
    if len(left) != len(right):
        raise ProblemsError([Problem(UNEVEN, {"before": len(left), "after": len(right)}, "after")])
    lines = [line.strip() for line in labels.splitlines() if line.strip()]
    shown = [lines[i] if i < len(lines) else f"{i + 1}" for i in range(len(left))]
    return pictures.to_tensor([before_after(shown, left, right, heading)])


def inspect(name: str) -> str:
    """The table of a file as text. Raises AprendizError."""
    from ..aprendiz.formats.inspect import inspect as look
    file = Path(name) if name and Path(name).is_absolute() else lora_file(name)
    return "\n".join(look(file).lines())


def _common(base: Mapping[str, Any], loras: Sequence[tuple[str, float]], given: Mapping[str, Any],
            prompts: Sequence[str]) -> list[str]:
    """Flags of everything that is drawn. Raises ProblemsError."""
    arguments = []
    embeddings: dict[str, Path] = {}
    for name, flag in BASE_FLAGS.items():
        if base.get(name) is not None:
            arguments += [flag, str(base[name])]
    for name, flag in FLAGS.items():
        if given.get(name) not in (None, ""):
            arguments += [flag, called(str(given[name]), embeddings)]
    for name in ("width", "height"):
        if given.get(name):
            arguments += [f"--{name}", str(given[name])]
    for prompt in prompts:
        arguments += ["--prompt", called(prompt, embeddings)]
    for file, weight in loras:
        arguments += ["--lora", f"{file}:{weight:g}"]
    for file in embeddings.values():
        arguments += ["--embedding", str(file)]
    return arguments


def _run(arguments: Sequence[str], node: str | None) -> None:
    display = host.Display(node)
    host.free_models()
    ask(arguments, display.progress)


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder for what passes between two processes."""
    folder = host.temporary_folder() / f"aprendiz-{secrets.token_hex(6)}"
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
