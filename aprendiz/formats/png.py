"""Pictures with what they were made from, in the form that AUTOMATIC1111, Forge and the picture sites read.

The text is the prompt, then "Negative prompt: ...", then one line "Steps: 20, Sampler: DDIM, CFG scale: 5, Seed: 1, Size:
512x512, ...". It stands in the chunk `parameters` of a PNG, and in the EXIF user comment of a JPEG or WebP.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, PngImagePlugin, UnidentifiedImageError

from ..errors import DatasetError, SettingsError
from .writing import make_folder, next_number, probe, write_new, write_whole

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

_EXIF, _USER_COMMENT = 0x8769, 0x9286  # EXIF 2.3, section 4.6.3 and 4.6.5
_SETTING = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
_NEGATIVE = "Negative prompt:"


@dataclass(frozen=True)
class Parameters:
    """What a picture was made from. settings: by the hosts' names, in order ("Steps", "Sampler", "CFG scale", "Seed", "Size")."""

    prompt: str
    negative: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    def text(self) -> str:
        """As hosts write it."""
        negative = f"\n{_NEGATIVE} {self.negative}" if self.negative else ""
        settings = ", ".join(f"{name}: {_quoted(value)}" for name, value in self.settings.items())
        return f"{self.prompt}{negative}\n{settings}".strip()

    @classmethod
    def parse(cls, text: str) -> Parameters:
        """From a text by any host."""
        *lines, last = text.strip().split("\n")
        found = _SETTING.findall(last)
        if len(found) < 3:  # no line of settings: hosts tell it from a prompt by the same rule
            lines, found = [*lines, last], []
        prompt, negative = lines, []
        for i, line in enumerate(lines):
            if line.strip().startswith(_NEGATIVE):
                prompt, negative = lines[:i], [line.strip()[len(_NEGATIVE):], *lines[i + 1:]]
                break
        joined = ["\n".join(line.strip() for line in part) for part in (prompt, negative)]
        return cls(joined[0], joined[1], {name: _unquoted(value) for name, value in found})


def save(picture: Image.Image, file: Path, parameters: Parameters | None = None) -> Path:
    """Write a picture, never over another: the name used, numbered if the one asked for was taken.

    Raises SettingsError for a suffix other than `SUFFIXES`, RunError where it cannot be written.
    """
    return write_new(file, encode(picture, file, parameters))


def save_over(picture: Image.Image, file: Path, parameters: Parameters | None = None,
              texts: Mapping[str, str] | None = None) -> Path:
    """Write a picture in place of an older one of this name (a training's samples, when a step is run again).

    texts: further chunks of a PNG, by their names.
    """
    return write_whole(file, encode(picture, file, parameters, texts))


def save_all(pictures: Sequence[Image.Image], out: Path, parameters: Sequence[Parameters]) -> list[Path]:
    """Write pictures to a file (numbered if there are several) or, if `out` is no picture's name, into a folder: 00001.png."""
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        return [save(picture, out, text) for picture, text in zip(pictures, parameters)]
    check_suffix(out)
    start = next_number(make_folder(out), ".png")
    return [save(picture, out / f"{start + i:05d}.png", text) for i, (picture, text) in enumerate(zip(pictures, parameters))]


def check_writable(out: Path) -> None:
    """Raises SettingsError or RunError now, rather than after minutes of drawing, if pictures cannot be written to `out`."""
    if out.suffix.lower() in SUFFIXES and not out.is_dir():
        probe(out.parent)
    else:
        check_suffix(out)
        probe(out)


def check_suffix(out: Path) -> None:
    """Raises SettingsError if `out` looks like a file of a kind that is not written (`a.tiff`); folders may have dots too."""
    if re.fullmatch(r"\.(?:tiff?|gif|bmp|avif|heic|jxl|jfif|psd|svg|pdf|mp4)", out.suffix.lower()) and not out.is_dir():
        raise SettingsError("{file} cannot be written as {kind}. End the name in .png, .jpg or .webp, or name a folder.",
                            file=out.name, kind=out.suffix[1:].upper(), where="out")


def encode(picture: Image.Image, file: Path, parameters: Parameters | None = None,
           texts: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a picture file of the kind that the name's suffix says; `texts` are further chunks of a PNG."""
    stream, text = io.BytesIO(), parameters.text() if parameters else ""
    suffix = file.suffix.lower()
    if suffix == ".png":
        info = PngImagePlugin.PngInfo()
        if text:
            info.add_text("parameters", text)
        for name, told in (texts or {}).items():
            info.add_text(name, told)
        picture.save(stream, "PNG", pnginfo=info)
    elif suffix in SUFFIXES:
        picture.convert("RGB").save(stream, "WEBP" if suffix == ".webp" else "JPEG", quality=95, exif=exif(text))
    else:
        raise SettingsError("{file} cannot be written as {kind}. End the name in .png, .jpg or .webp, or name a folder.",
                            file=file.name, kind=suffix[1:].upper(), where="out")
    return stream.getvalue()


def exif(text: str) -> bytes:
    """EXIF with a user comment, or nothing."""
    found = Image.Exif()
    if text:
        found[_EXIF] = {_USER_COMMENT: b"UNICODE\0" + text.encode("utf-16-be")}  # older Pillow forgets what get_ifd gave
    return found.tobytes() if text else b""


def read(file: Path) -> Parameters | None:
    """What a picture was made from, if it says so. Raises DatasetError if it is no picture."""
    try:
        with Image.open(file) as picture:
            text = picture.info.get("parameters")
            comment = picture.getexif().get_ifd(_EXIF).get(_USER_COMMENT)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise DatasetError("{file} cannot be read as a picture. Check that it is there and opens in a viewer.",
                           file=str(file)) from error
    if not isinstance(text, str) and isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        text = comment[8:].decode("utf-16-be", errors="replace")
    return Parameters.parse(text) if isinstance(text, str) and text else None


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if re.search(r'[,:\n"]', value) else value


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value.strip()
    try:
        return str(json.loads(value))
    except ValueError:
        return value
