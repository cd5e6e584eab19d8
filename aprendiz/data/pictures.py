"""Pictures: from files of any kind to upright 8-bit sRGB, with a weight for each pixel where something says so.

Arrays are uint8: pictures H x W x 3, weights H x W (255 counts fully, 0 not at all). Sizes are (width, height) in pixels,
upright: turned as the EXIF orientation says.
"""

from __future__ import annotations

import hashlib
import posixpath
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageColor, UnidentifiedImageError, features
from PIL import __version__ as pillow_version

from ..errors import DatasetError, SettingsError
from ..families import PictureSize
from .captions import shown

if TYPE_CHECKING:
    from ..settings import DataSettings
    from .folder import Picture

Pixels = NDArray[np.uint8]

MAX_PIXELS = 178_956_970  # what Pillow itself refuses to open: 512 MB as RGB
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "GIF", "AVIF")  # by content; phones write JPEGs that are MPOs
SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"RIFF", b"BM", b"GIF8")  # and AVIF: `ftyp` after four bytes
# What Pillow raises of broken files (RuntimeError: libavif).
BROKEN = (OSError, SyntaxError, ValueError, EOFError, IndexError, OverflowError, RuntimeError, struct.error,
          Image.DecompressionBombError)
UPRIGHT = {  # EXIF orientation to what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90}


@dataclass(frozen=True)
class Header:
    """What a file tells without being decoded: its size, upright, and the SHA-256 of its bytes."""

    size: tuple[int, int]
    digest: str


def header(file: Path, name: str) -> Header:
    """Size and digest of a picture file; nothing is decoded. `name` is what messages call it. Raises DatasetError."""
    with opened(file, name) as (stream, image):
        upright = upright_size(stream, image)
        stream.seek(0)
        return Header(upright, digest(stream))


def size(file: Path, name: str) -> tuple[int, int]:
    """Size of a picture file, upright. Raises DatasetError."""
    with opened(file, name) as (stream, image):
        return upright_size(stream, image)


def upright_size(stream: BinaryIO, image: Image.Image) -> tuple[int, int]:
    """An opened image's size as it is seen, which EXIF orientations from 5 on turn on its side."""
    width, height = image.size
    return (height, width) if orientation(stream, image) >= 5 else (width, height)


def digest(stream: BinaryIO) -> str:
    """SHA-256 of what is left in a stream, in hexadecimal digits."""
    found = hashlib.sha256()
    while block := stream.read(1 << 20):
        found.update(block)
    return found.hexdigest()


def read(picture: Picture, settings: DataSettings) -> tuple[Pixels, Pixels | None]:
    """A picture as upright sRGB, and how much each of its pixels counts (None: all fully).

    Transparent places show the background colour; with transparency = 'weight' they also count less (the VAE sees them all the
    same). A mask is brought to the picture's size and multiplies that. Raises DatasetError; SettingsError for no colour.
    """
    rgb, alpha = decode(picture.file, picture.name)
    weight = None
    if alpha is not None:
        rgb = over(rgb, alpha, colour(settings.background))
        weight = np.array(alpha) if settings.transparency == "weight" else None
    if picture.mask is not None and settings.masks:
        mask = read_mask(picture.mask, mask_name(picture), rgb.size)
        weight = mask if weight is None else _times(weight, mask)
    return np.array(rgb), weight


def read_mask(file: Path, name: str, size: tuple[int, int]) -> Pixels:
    """A mask's brightness at a picture's size; transparent places are black. Raises DatasetError."""
    rgb, alpha = decode(file, name)
    grey = (rgb if alpha is None else over(rgb, alpha, (0, 0, 0))).convert("L")
    return np.array(grey if grey.size == size else grey.resize(size, Image.Resampling.BILINEAR))


def mask_name(picture: Picture) -> str:
    """What messages call a picture's mask: its name relative to the dataset's folder."""
    assert picture.mask is not None
    return shown(posixpath.join(posixpath.dirname(picture.name), picture.mask.name))


def condition_name(picture: Picture) -> str:
    """What messages call a picture's condition picture."""
    assert picture.condition is not None
    root = picture.file
    for _ in picture.name.split("/"):
        root = root.parent
    inside = picture.condition.is_relative_to(root)
    return shown(picture.condition.relative_to(root).as_posix() if inside else picture.condition.name)


def placed(size: tuple[int, int], target: tuple[int, int], crop: str, at: tuple[float, float],
           resize: bool = True) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """To which size a picture is brought so that it just covers `target`, and which box of it stays.

    resize: also where it is larger; otherwise it keeps its size as long as it covers `target`.
    """
    scale = max(target[0] / size[0], target[1] / size[1])
    scale = scale if resize else max(1.0, scale)
    covering = (max(target[0], round(size[0] * scale)), max(target[1], round(size[1] * scale)))
    share = at if crop == "random" else (0.5, 0.5)
    left, top = round((covering[0] - target[0]) * share[0]), round((covering[1] - target[1]) * share[1])
    return covering, (left, top, left + target[0], top + target[1])


def fit_beside(beside: Pixels, size: tuple[int, int], target: tuple[int, int], crop: str, at: tuple[float, float],
               resize: bool = True) -> Pixels:
    """What stands beside a picture of this size, itself of any size of that shape, cut exactly as the picture is."""
    covering, box = placed(size, target, crop, at, resize)
    return np.array(_resized(beside, covering, Image.Resampling.BILINEAR).crop(box))


def fit(rgb: Pixels, weight: Pixels | None, target: tuple[int, int], crop: str, at: tuple[float, float],
        resize: bool = True) -> tuple[Pixels, Pixels | None, PictureSize]:
    """Resize a picture, keeping its shape, until it just covers `target`, and cut away what is too much.

    resize: as in `placed`.

    crop 'center' cuts both sides alike; 'random' leaves the part at `at`, from (0, 0) top left to (1, 1) bottom right. Weights go
    exactly the same way as their pixels.
    """
    height, width = rgb.shape[:2]
    size, box = placed((width, height), target, crop, at, resize)
    # Both filters widen with the reduction, so nothing aliases. Lanczos would overshoot at the hard edges of a mask.
    cut = np.array(_resized(rgb, size, Image.Resampling.LANCZOS).crop(box))
    cut_weight = None if weight is None else np.array(_resized(weight, size, Image.Resampling.BILINEAR).crop(box))
    return cut, cut_weight, PictureSize((width, height), box[:2], target)


def _resized(pixels: Pixels, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    image = Image.fromarray(pixels)
    return image if image.size == size else image.resize(size, resample)


def _times(a: Pixels, b: Pixels) -> Pixels:
    return ((a.astype(np.uint16) * b + 127) // 255).astype(np.uint8)


def colour(text: str) -> tuple[int, int, int]:
    """A colour such as '#ff8800' or 'white' as red, green, blue. Raises SettingsError."""
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError as error:
        raise SettingsError("background is '{value}', which is no colour. Write one such as '#ffffff' or 'white'.",
                            where="data.background", value=text) from error
    return red, green, blue


def over(rgb: Image.Image, alpha: Image.Image, background: tuple[int, int, int]) -> Image.Image:
    """A picture laid on a colour."""
    canvas = Image.new("RGB", rgb.size, background)
    canvas.paste(rgb, mask=alpha)
    return canvas


# Decoding


@contextmanager
def opened(file: Path, name: str) -> Iterator[tuple[BinaryIO, Image.Image]]:
    """A picture file and its image, not decoded yet. What Pillow raises of it, also in the block, becomes a DatasetError."""
    try:
        with file.open("rb") as stream, Image.open(stream, formats=formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield stream, image
    except BROKEN as error:
        raise trouble(file, name, error) from error


def decode(file: Path, name: str) -> tuple[Image.Image, Image.Image | None]:
    """A file's first picture, upright, in sRGB, and its transparency (mode L), None where it is opaque. Raises DatasetError."""
    with opened(file, name) as (stream, image):
        turn = UPRIGHT.get(orientation(stream, image))
        image.load()
    rgb, alpha = separate(image)
    rgb = to_srgb(rgb, image.info.get("icc_profile"))
    if alpha is not None and alpha.getextrema()[0] == 255:
        alpha = None
    if turn is not None:
        rgb, alpha = rgb.transpose(turn), alpha and alpha.transpose(turn)
    return rgb, alpha


def separate(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours (mode RGB, L or CMYK) and transparency of an image in any mode."""
    if image.mode.startswith("I"):
        # 16-bit grey, which Pillow's own convert clips at 255 instead of scaling it.
        deep = np.asarray(image).astype(np.int64).clip(0, 65535)
        grey = Image.fromarray(((deep * 255 + 32767) // 65535).astype(np.uint8))
        clear = image.info.get("transparency")
        return grey, Image.fromarray(np.where(deep == clear, 0, 255).astype(np.uint8)) if isinstance(clear, int) else None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return rgba.convert("RGB"), rgba.getchannel("A")
    return (image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")), None


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """An image (RGB, L or CMYK) as RGB in the sRGB colour space; a profile that is broken or of another mode is left aside."""
    if not profile or not features.check_module("littlecms2"):
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        space = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(source.profile.xcolor_space.strip())
        if space == "RGB" and image.mode == "L":
            image = image.convert("RGB")
        if space != image.mode or "srgb" in ImageCms.getProfileDescription(source).lower():
            return image.convert("RGB")
        return ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB") or image.convert("RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB")


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@cache
def formats() -> list[str]:
    """The formats that the installed Pillow reads, of those that we take."""
    Image.init()
    # Pillow older than 11.3 does not know AVIF; a newer one may have been built without it.
    avif = "avif" in features.modules and features.check_module("avif")
    return [name for name in FORMATS if name in Image.OPEN and (avif or name != "AVIF")]


def orientation(stream: BinaryIO, image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8, without decoding; the stream stays where it is.

    Pillow's own `getexif` decodes a PNG to look for a chunk after the pixels, and warns of damaged EXIF data from any thread.
    """
    exif = image.info.get("exif")
    if exif is None and image.format == "PNG":
        exif = _late_exif(stream)
    if exif is None and isinstance(text := image.info.get("Raw profile type exif"), str):
        exif = bytes.fromhex("".join(text.split("\n")[3:]))
    return _exif_orientation(exif) if isinstance(exif, bytes) else 1


def _exif_orientation(exif: bytes) -> int:
    tiff = exif[6:] if exif.startswith(b"Exif\0\0") else exif
    order = {b"II": "<", b"MM": ">"}.get(tiff[:2])
    if order is None:
        return 1
    try:
        start, = struct.unpack_from(f"{order}I", tiff, 4)
        count, = struct.unpack_from(f"{order}H", tiff, start)
        for entry in range(start + 2, start + 2 + 12 * count, 12):
            tag, kind = struct.unpack_from(f"{order}HH", tiff, entry)
            if tag == 0x0112:
                value, = struct.unpack_from(f"{order}I" if kind == 4 else f"{order}H", tiff, entry + 8)
                return value if 1 <= value <= 8 else 1
    except struct.error:  # cut short: many cameras' editors leave such data behind
        return 1
    return 1


def _late_exif(stream: BinaryIO) -> bytes | None:
    """A PNG's eXIf chunk wherever it stands; the pixels are stepped over."""
    here = stream.tell()
    stream.seek(8)
    found = None
    while len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"eXIf":
            found = stream.read(length)
            break
        stream.seek(length + 4, 1)
    stream.seek(here)
    return found


# What is wrong


def trouble(file: Path, name: str, error: BaseException) -> DatasetError:
    """What a person is told of a picture that Pillow would not open or decode."""
    if isinstance(error, Image.DecompressionBombError):
        return DatasetError("{file} has more than {limit} million pixels, more than is safe to open. Scale it down or remove it.",
                            where=name, file=name, limit=round(MAX_PIXELS / 1e6, 3))
    if isinstance(error, OSError) and error.errno is not None:
        return DatasetError("{file} cannot be opened: {reason}.", where=name, file=name,
                            reason=error.strerror or type(error).__name__)
    start = _start(file)
    if not start:
        return DatasetError("{file} is empty: it has no bytes. Copy it again, or remove it.", where=name, file=name)
    if b"ftypavi" in start and "AVIF" not in formats():
        return DatasetError("{file} is an AVIF picture, which the installed Pillow {version} cannot read. Save it as PNG, "
                            "or update Pillow to 11.3 or later.", where=name, file=name, version=pillow_version)
    if isinstance(error, UnidentifiedImageError) and not start.startswith(SIGNATURES) and start[4:8] != b"ftyp":
        return DatasetError("{file} is no picture that can be read, whatever its name says. Save it anew as PNG or JPEG, "
                            "or remove it.", where=name, file=name)
    return DatasetError("{file} is truncated or damaged and cannot be read to its end. Copy or download it again, or remove it.",
                        where=name, file=name)


def _start(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(32)


@contextmanager
def quietly() -> Iterator[None]:
    """None of Pillow's warnings (large pictures, damaged EXIF data). Filters are the process's: one thread enters, for all."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield
