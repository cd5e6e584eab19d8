"""Condition pictures that a page hands over for *Try it*: bounded, decoded, and kept under names of our own.

What is kept is a PNG written anew from the pixels, named by its content: neither the sender's file name nor anything else that
travelled in the file reaches the disk. Standard library only at module level; Pillow opens the picture.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
from contextlib import suppress
from pathlib import Path

from ..errors import DatasetError, RunError
from ..files import disk_errors

LARGEST = 16 << 20  # bytes of a file
SIDE = 4096  # pixels of either side
KEPT = 40  # pictures; the oldest go
KEY = re.compile(r"[0-9a-f]{32}")


def keep(data: bytes, place: Path) -> tuple[str, tuple[int, int]]:
    """Keep a picture: its key and its size in pixels. Raises DatasetError for what is none, or too large a one."""
    if len(data) > LARGEST:
        raise too_large()
    from ..data import pictures
    with disk_errors(place):
        place.mkdir(parents=True, exist_ok=True)
    sent = place / f".{secrets.token_hex(8)}.sent"
    made = place / f".{secrets.token_hex(8)}.png"
    try:
        with disk_errors(place):
            sent.write_bytes(data)
        with pictures.quietly(), pictures.opened(sent, "-") as (_, image):
            if max(image.size) > SIDE:
                raise too_large()
        with pictures.quietly():
            rgb, alpha = pictures.decode(sent, "-")
        if alpha is not None:
            rgb.putalpha(alpha)
        with disk_errors(place):
            rgb.save(made, "PNG")
            key = hashlib.sha256(made.read_bytes()).hexdigest()[:32]
            os.replace(made, place / f"{key}.png")
    except DatasetError as error:
        if error.problem.where == "control":
            raise
        raise DatasetError("This file is no picture that can be read. Choose a PNG, JPEG or WebP.", where="control") from error
    finally:
        for file in (sent, made):
            with suppress(OSError):
                file.unlink()
    _tidy(place, key)
    return key, rgb.size


def too_large() -> DatasetError:
    """What is said of a file that is not even decoded."""
    return DatasetError("This picture is too large: {size} MB and {side} pixels a side are the most. Scale it down.",
                        size=LARGEST >> 20, side=SIDE, where="control")


def kept(key: str, place: Path) -> Path:
    """The file of a kept picture. Raises RunError where there is none."""
    file = place / f"{key}.png"
    if not KEY.fullmatch(key) or not file.is_file():
        raise RunError("This condition picture is not there any more. Choose it again.", where="control")
    return file


def _tidy(place: Path, newest: str) -> None:
    with suppress(OSError):
        os.utime(place / f"{newest}.png")
        files = sorted(place.glob("*.png"), key=lambda file: file.stat().st_mtime)
        for file in files[:max(0, len(files) - KEPT)]:
            file.unlink()
