"""The folder to publish: the weights with the metadata that is to be told, a model card, the preview, the grid.

Nothing is sent anywhere.

    public   (default) what it is, what calls it, hashes; nothing of the pictures, the captions or the settings
    full     the settings too, as a job that trains it again; captions, prompts and the names of folders are left out
    none     the little without which hosts cannot tell which family it is for, and hashes

Metadata is cut first and hashed then, and the file is not touched again: a hash once published must stay. Pictures are encoded
anew from their pixels, so that no prompt travels in them. `plan` tells all that will be seen, and writes nothing.
"""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import __version__
from ..errors import RunError, SettingsError
from ..files import move_into_place, temporary_name
from ..texts import say
from . import container, graph, metadata, recognise
from .inspect import Inspection, inspect, job_in
from .writing import make_folder, write_whole

LEVELS = ("public", "full", "none")
TAGS = {"sd1": "stable-diffusion", "sd2": "stable-diffusion", "sdxl": "stable-diffusion-xl"}


@dataclass(frozen=True)
class SharePlan:
    """What would be published. pictures: file to be read, by the name it gets."""

    weights: Path
    folder: Path
    level: str
    metadata: Mapping[str, str]
    pictures: Mapping[str, Path]
    card: str
    sidecar: bytes | None
    found: Inspection

    @property
    def name(self) -> str:
        """The name that everything has."""
        return self.weights.stem

    def lines(self) -> list[str]:
        """All that will be seen, for the person to look at before it is written."""
        told = [say("{folder} will hold:", folder=str(self.folder)),
                say("{file}: {what}", file=self.weights.name, what=self.found.title)]
        told += [f"    {name} = {value if len(value) <= 100 else value[:100] + '...'}" for name,
                 value in sorted(self.metadata.items())]
        told.append(say("README.md: a model card, and beside it {pictures}", pictures=", ".join(self.pictures) or "-"))
        if "grid.png" in self.pictures:
            told.append(say("Look at grid.png before you publish it: the prompts are written on it."))
        if not self.found.triggers:
            told.append(say("No trigger word is known, so the card names none."))
        return told


def plan(run: Path, out: Path | None = None, level: str = "public") -> SharePlan:
    """What would be published of a run (its folder, or a file of weights).

    Raises RunError, ModelError, SettingsError; writes nothing.
    """
    if level not in LEVELS:
        raise SettingsError("The level is '{level}'. It can be: {choices}.", level=level, choices=", ".join(LEVELS),
                            where="level")
    weights = result(Path(run))
    found = inspect(weights)
    told = public_metadata(found.metadata, level)
    pictures = {} if level == "none" else pictures_of(weights)
    triggers = () if level == "none" else found.triggers
    return SharePlan(weights, free_folder(out or weights.parent / "share"), level, told, pictures,
                     card(found, triggers, told, pictures),
                     sidecar_of(found, triggers) if level != "none" and found.kind == "lora" else None, found)


def share(run: Path, out: Path | None = None, level: str = "public") -> Path:
    """Make the folder to publish; its path (`out`, else `share` in the run's folder; with a number where that is taken)."""
    planned = plan(run, out, level)
    part = temporary_name(planned.folder)
    make_folder(part)
    try:
        content = planned.weights.read_bytes()
        hashed = container.hash_fields(content) if planned.found.kind in ("lora", "textual_inversion") else {}
        write_whole(part / planned.weights.name, container.with_metadata(content, {**planned.metadata, **hashed}))
        for name, file in planned.pictures.items():
            write_whole(part / name, clean_picture(file))
        if planned.sidecar is not None:
            write_whole(part / f"{planned.name}.json", planned.sidecar)
        write_whole(part / "README.md", planned.card.encode("utf-8"))
        move_into_place(part, planned.folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return planned.folder


def result(run: Path) -> Path:
    """The weights to publish: the file itself, or the result in a run's folder."""
    if run.is_file():
        return run
    file = run / f"{run.resolve().name}.safetensors"
    if not file.is_file():
        raise RunError("{folder} holds no result yet ({file} is missing). Finish the run with `python -m aprendiz resume "
                       "{folder}`, "
                       "or name a file of weights.", folder=str(run), file=file.name, where=str(run))
    return file


def free_folder(folder: Path) -> Path:
    """The folder, or the next free one: share-2, share-3."""
    number = 1
    while True:
        candidate = folder if number == 1 else folder.with_name(f"{folder.name}-{number}")
        if not candidate.exists():
            return candidate
        number += 1


def public_metadata(told: Mapping[str, str], level: str) -> dict[str, str]:
    """The metadata to publish, without its hashes: cut to the level; at every level without captions and names of folders."""
    kept = {name: value for name, value in metadata.reduce(told, level).items() if name not in metadata.HASHES}
    if level != "full":
        return kept
    for name in ("ss_dataset_dirs", "ss_reg_dataset_dirs", "ss_datasets", "ss_tag_frequency", *graph.KEYS):
        kept.pop(name, None)
    kept |= {name: value for name, value in metadata.reduce(told, "public").items() if name == "ss_tag_frequency"}
    job = job_in(kept)
    kept.pop(metadata.JOB, None)  # what cannot be read is not published
    if job is not None:
        kept[metadata.JOB] = json.dumps(_public_job(job), ensure_ascii=False, separators=(",", ":"))
    return kept


def _public_job(job: dict[str, Any]) -> dict[str, Any]:
    """A job without captions, prompts and the names of the person's folders."""
    for section, name, nothing in (("samples", "sample_prompts", []), ("samples", "negative_prompt", ""),
                                   ("prior", "prompts", []),
                                   ("prior", "prior_data", None), ("data", "caption", None), ("data", "path", None)):
        if name in job.get(section, {}):
            job[section][name] = nothing
    return job


def pictures_of(weights: Path) -> dict[str, Path]:
    """The preview and the grid that stand beside the weights, by the names that they get."""
    previews = {f"{weights.stem}{ending}": weights.with_suffix(ending) for ending in (".png", ".preview.png")}
    found = {**previews, "grid.png": weights.parent / "report" / "grid.png"}
    return {name: file for name, file in found.items() if file.is_file()}


def clean_picture(file: Path) -> bytes:
    """A picture's pixels alone, as PNG: no prompt, EXIF, colour profile or comment."""
    from PIL import Image
    with Image.open(file) as opened:
        pixels = opened.convert("RGB")
    bare = Image.new("RGB", pixels.size)
    bare.paste(pixels)
    stream = io.BytesIO()
    bare.save(stream, "PNG")
    return stream.getvalue()


def sidecar_of(found: Inspection, triggers: tuple[str, ...]) -> bytes:
    """The side-car for AUTOMATIC1111 and Forge."""
    return metadata.sidecar(found.file.stem, ", ".join(triggers), found.family or "", recognise.title(found.family))


def card(found: Inspection, triggers: tuple[str, ...], told: Mapping[str, str], pictures: Mapping[str, Path]) -> str:
    """The model card: front matter as diffusers' trainers write it, then how to use the file. The base's place is never told."""
    name, trigger = found.file.stem, ", ".join(triggers)
    picture = next((shown for shown in (f"{name}.png", f"{name}.preview.png") if shown in pictures), None)
    license = told.get("modelspec.license")
    front: list[str] = ["library_name: diffusers", "pipeline_tag: text-to-image", "base_model_relation: adapter"]
    front += [f"license: {_quoted(license)}"] if license else []
    front += [f"instance_prompt: {_quoted(trigger)}"] if trigger else []
    front += ["widget:", f"- text: {_quoted(trigger or ' ')}", "  output:", f"    url: {picture}"] if picture else []
    kind = {"lora": ["lora", "template:sd-lora"], "textual_inversion": ["textual_inversion"], "controlnet": ["controlnet"]}
    tags = ["text-to-image", "diffusers", "diffusers-training", *kind.get(found.kind, []),
            *filter(None, [TAGS.get(found.family or "")])]
    front += ["tags:", *(f"- {tag}" for tag in tags)]
    what = f"{found.algorithm or found.kind} for {recognise.title(found.family)}"
    body = [f"# {name}", f"{what}, made with Aprendiz {__version__}."]
    body += ["<Gallery />"] if picture and found.kind == "lora" else []
    body += ["## Trigger word", f"Write `{trigger}` in the prompt."] if trigger else []
    if found.kind == "lora":
        body += ["## Use", "ComfyUI: put the file into `models/loras` and load it with *Load LoRA*. AUTOMATIC1111 and Forge: "
                           "put it into "
                 f"`models/Lora` and write `<lora:{name}:1>` in the prompt.",
                 f'```python\npipeline.load_lora_weights("FOLDER_OR_REPOSITORY", weight_name="{name}.safetensors")\n```']
    if found.kind == "textual_inversion":
        body += ["## Use", f"ComfyUI: put the file into `models/embeddings` and write `embedding:{name}` in the prompt. "
                           f"AUTOMATIC1111 and Forge: put it into `embeddings` and write `{name}`. Its file's name calls it."]
    body += ["![before and after](grid.png)"] if "grid.png" in pictures else []
    body.append("## Base and licence")
    micro = found.metadata.get("ss_sd_model_name") == "micro"
    body.append("The base is `micro`, which comes with Aprendiz." if micro else
                "The base was a file on the maker's machine; which one it was is not recorded here.")
    body += [] if license else ["No licence is stated: ask the maker before you use it."]
    return "---\n" + "\n".join(front) + "\n---\n\n" + "\n\n".join(body) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # a JSON string is a YAML string too
