"""The nodes that say what is taught and from what: base, datasets, their options."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..aprendiz.errors import AprendizError, Problem, ProblemsError
from ..aprendiz.files import disk_errors
from ..aprendiz.knobs import read
from ..aprendiz.settings import BaseSettings, DataSettings
from ..aprendiz.views.comfy import job_values
from ..aprendiz.views.comfy_nodes import nodes
from ..aprendiz.views.looks import dataset_report
from ..aprendiz.views.panel import CAPTION_COUNT, NO_FOLDER
from ..aprendiz.views.ready import Pictures, ready
from . import host, pictures

EXAMPLE = "example:"  # before the subject of the built-in example
SHOWN = 64  # pictures at most that a dataset node gives out
MOST_BASES = 100  # whose headers are looked at


def base_values(given: Mapping[str, Any]) -> dict[str, Any]:
    """A base's settings with whole paths. Raises ProblemsError, and ModelError for what is no base."""
    from ..aprendiz.formats.checkpoint import find
    values = job_values(nodes()["AprendizBase"].inputs, given).get("base", {})
    chosen = str(given.get("elsewhere") or "").strip() or str(values.get("path") or BaseSettings().path)
    found = host.find("checkpoints", chosen) or host.diffusers_folder(chosen)
    values["path"] = str(found) if found else chosen
    for name, kind in (("vae", "vae"), ("text_encoder", "text_encoders")):
        if values.get(name):
            values[name] = str(host.find(kind, values[name]) or values[name])
    settings, problems = read(BaseSettings, values, "base")
    if settings is None:
        raise ProblemsError(problems)
    find(settings)
    return values


def whole(folder: str) -> str:
    """A folder's full path; a name alone is that of a folder below ComfyUI's input folder, `example:fish` pictures drawn here."""
    if folder.startswith(EXAMPLE):
        return str(_example(folder.removeprefix(EXAMPLE)))
    path = Path(folder).expanduser()
    if folder and not path.is_absolute() and (host.input_folder() / path).is_dir():
        return str(host.input_folder() / path)
    return folder


def _example(subject: str) -> Path:
    """The folder with the built-in example's pictures, drawn on first use. Raises SettingsError for a subject there is not."""
    from ..aprendiz.micro.pictures import write_pictures
    folder = host.output_folder() / "aprendiz" / ".pictures" / f"example-{subject or 'none'}"
    with disk_errors(folder):
        if not (folder / "whole").is_file():
            write_pictures(folder, subject)
            (folder / "whole").touch()
    return folder


def dataset(id: str, folder: str, options: Mapping[str, Any] | None,
            given: Mapping[str, Any]) -> tuple[dict[str, Any], Any, str, int, Any]:
    """A folder of pictures: its settings, small pictures, the report, how many there are, and thumbnails as PIL has them.

    Raises ProblemsError with everything that would stop a training.
    """
    from ..aprendiz.data.folder import scan
    from ..aprendiz.data.preflight import read_every
    values = {**(options or {}), **job_values(nodes()[id].inputs, given).get("data", {}), "path": whole(folder) or None}
    settings, problems = read(DataSettings, values, "data")
    if settings is None or settings.path is None:
        raise ProblemsError(problems or [Problem(NO_FOLDER, {}, "data.path")])
    found = scan(settings, heed)
    told = [*found.problems, *read_every(found.pictures, settings, heed)]
    stopping = [problem for problem in told if settings.strict or not problem.warning]
    if stopping:
        raise ProblemsError(stopping)
    small = pictures.thumbnails([picture.file for picture in found.pictures[:SHOWN]])
    return {"data": values}, pictures.to_tensor(small), dataset_report(found.pictures, told), len(found.pictures), small


def ready_values(name: str) -> dict[str, dict[str, Any]]:
    """A job that fits a folder of pictures below the input folder and this card. Raises AprendizError where there is none."""
    from ..aprendiz.data.folder import scan
    settings, _ = read(DataSettings, {"path": str(host.input_folder() / name)}, "data")
    assert settings is not None
    found = scan(settings).pictures
    sides = sorted(math.isqrt(picture.size[0] * picture.size[1]) for picture in found)
    told = Pictures(len(found), sum(any(picture.captions) for picture in found), sides[len(sides) // 2] if sides else 0,
                    re.sub(r"-[0-9a-f]{8}$", "", name))
    return ready(told, bases(), host.card_gb())


def bases() -> list[tuple[str, str]]:
    """Models that can be taught, by the names that lists show, with their families; found from their headers."""
    from ..aprendiz.formats.checkpoint import find
    found = []
    for name in (*host.names("checkpoints")[:MOST_BASES], *host.diffusers_folders()):
        place = host.find("checkpoints", name) or host.diffusers_folder(name)
        try:
            found.append((name, find(BaseSettings(path=str(place))).family))
        except (AprendizError, OSError):
            continue  # a file of another kind
    return found


def heed(done: int, total: int) -> None:
    """Between two pictures of a large folder: leave where the queue was interrupted."""
    host.stop_here()


def write_images(images: Any, captions: str) -> Path:
    """Write pictures of the graph into a folder named by their content, once; its path. Raises ProblemsError, RunError."""
    found = pictures.to_pil(images)
    lines = [line.strip() for line in captions.splitlines() if line.strip()]
    if len(lines) not in (0, 1, len(found)):
        raise ProblemsError([Problem(CAPTION_COUNT, {"pictures": len(found), "captions": len(lines)}, "captions")])
    each = lines * len(found) if len(lines) == 1 else lines
    digest = hashlib.sha256("\n".join(each).encode() + b"".join(picture.tobytes() for picture in found)).hexdigest()[:16]
    folder = host.output_folder() / "aprendiz" / ".pictures" / digest
    with disk_errors(folder):
        if not (folder / "whole").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _write(folder, found, each)
            (folder / "whole").touch()
    return folder


def _write(folder: Path, found: Sequence[Any], captions: Sequence[str]) -> None:
    for number, picture in enumerate(found):
        picture.save(folder / f"{number:04}.png")
        if captions:
            (folder / f"{number:04}.txt").write_text(captions[number], encoding="utf-8")


def fingerprint(folder: str) -> str:
    """Changes when a picture or a caption in the folder does, from names, sizes and times alone."""
    digest = hashlib.sha256()
    root = Path(whole(str(folder))).expanduser()
    files = sorted(root.rglob("*")) if folder and root.is_dir() else []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            continue
        digest.update(f"{file.name} {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def preview(small: Sequence[Any], name: str) -> dict[str, Any]:
    """Pictures shown on a node: written into ComfyUI's temporary folder."""
    shown = []
    for number, picture in enumerate(small[:24]):
        file = host.temporary_folder() / f"aprendiz-{name}-{number:02}.jpg"
        picture.convert("RGB").save(file, quality=85)
        shown.append({"filename": file.name, "subfolder": "", "type": "temp"})
    return {"images": shown}
