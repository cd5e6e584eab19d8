"""Pictures of every kind become upright 8-bit sRGB, and weights stay with their pixels."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from aprendiz.data import pictures
from aprendiz.data.folder import Picture
from aprendiz.errors import DatasetError, SettingsError
from aprendiz.settings import DataSettings

RED, GREEN, BLUE = (250, 10, 20), (10, 240, 30), (5, 15, 245)


def picture(file: Path, mask: Path | None = None) -> Picture:
    header = pictures.header(file, file.name)
    return Picture(file=file, size=header.size, digest=header.digest, captions=("",), mask=mask, name=file.name)


def read(file: Path, mask: Path | None = None, **settings: object) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    rgb, weight = pictures.read(picture(file, mask), DataSettings(**settings))  # type: ignore[arg-type]
    assert rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.flags.writeable
    assert weight is None or (weight.dtype == np.uint8 and weight.shape == rgb.shape[:2])
    return rgb, weight


def quarters() -> Image.Image:
    """Red and green above, blue and white below: every turn and mirroring looks different."""
    pixels = np.full((32, 48, 3), 255, np.uint8)
    pixels[:16, :24], pixels[:16, 24:], pixels[16:, :24] = RED, GREEN, BLUE
    return Image.fromarray(pixels)


def noise(width: int = 60, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def near(pixel: NDArray[np.uint8], colour: tuple[int, int, int], by: int = 12) -> bool:
    return bool(np.abs(pixel.astype(int) - colour).max() <= by)


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "avif", "gif"])
def test_every_format_is_read(tmp_path: Path, extension: str) -> None:
    if extension == "avif" and "AVIF" not in pictures.formats():
        pytest.skip("this Pillow reads no AVIF")
    quarters().save(tmp_path / f"a.{extension}", **({"quality": 95, "subsampling": 0} if extension == "jpg" else {}))
    rgb, weight = read(tmp_path / f"a.{extension}")
    assert rgb.shape == (32, 48, 3) and weight is None
    assert near(rgb[4, 4], RED, 40) and near(rgb[4, 40], GREEN, 40)
    assert near(rgb[28, 4], BLUE, 40) and near(rgb[28, 40], (255, 255, 255), 40)


def test_the_content_counts_and_not_the_ending(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.webp", lossless=True)
    (tmp_path / "a.webp").rename(tmp_path / "a.png")
    assert np.array_equal(read(tmp_path / "a.png")[0], np.array(quarters()))


@pytest.mark.parametrize("extension", ["jpg", "png", "webp", "avif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_is_put_upright(tmp_path: Path, extension: str, orientation: int) -> None:
    if extension == "avif" and "AVIF" not in pictures.formats():
        pytest.skip("this Pillow reads no AVIF")
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = quarters()
    undo = pictures.UPRIGHT.get(orientation)
    if undo is not None:  # what a camera stores: the upright picture, turned the other way
        inverse = {Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270, Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90}
        stored = stored.transpose(inverse.get(undo, undo))
    file = tmp_path / f"a.{extension}"
    stored.save(file, exif=exif, **({"quality": 95} if extension != "png" else {}))
    rgb, _ = read(file)
    assert picture(file).size == (48, 32) and rgb.shape == (32, 48, 3)
    assert near(rgb[4, 4], RED, 40) and near(rgb[4, 44], GREEN, 40) and near(rgb[28, 4], BLUE, 40)


def _saved(file: Path, image: Image.Image) -> Path:
    image.save(file)
    return file


def test_exif_data_after_a_pngs_pixels_count_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = _saved(tmp_path / "a.png", quarters()).read_bytes()
    tiff = exif.tobytes().removeprefix(b"Exif\0\0")
    chunk = struct.pack(">I", len(tiff)) + b"eXIf" + tiff + struct.pack(">I", zlib.crc32(b"eXIf" + tiff))
    (tmp_path / "a.png").write_bytes(data[:-12] + chunk + data[-12:])
    assert picture(tmp_path / "a.png").size == (32, 48)
    assert read(tmp_path / "a.png")[0].shape == (48, 32, 3)


@pytest.mark.parametrize("exif", [b"", b"Exif\0\0", b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12", b"Exif\0\0II*\0\xff\xff\xff\x7f",
                                  b"nonsense" * 4])
def test_damaged_exif_data_turn_nothing(tmp_path: Path, exif: bytes) -> None:
    quarters().save(tmp_path / "a.jpg", exif=exif)
    with pictures.quietly():
        assert picture(tmp_path / "a.jpg").size == (48, 32)


def test_16_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert stored.mode.startswith("I")
    rgb, _ = read(tmp_path / "a.png")
    assert np.array_equal(rgb[..., 0], np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert np.array_equal(rgb[..., 0], rgb[..., 1]) and np.array_equal(rgb[..., 0], rgb[..., 2])


def test_16_bit_colour_keeps_its_brightness(tmp_path: Path) -> None:
    rows = b"".join(b"\0" + struct.pack(">6H", 0, 32896, 65535, 257, 25700, 51400) for _ in range(2))
    head = struct.pack(">2I5B", 2, 2, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks))
    assert read(tmp_path / "a.png")[0].tolist()[0] == [[0, 128, 255], [1, 100, 200]]


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    file = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    image = quarters().quantize(8) if mode == "P" else quarters().convert(mode)
    image.save(file, **({"quality": 95, "subsampling": 0} if mode == "CMYK" else {}))
    with Image.open(file) as stored:
        assert stored.mode == mode
    rgb, weight = read(file)
    assert weight is None and near(rgb[28, 44], (255, 255, 255), 3)
    if mode in ("P", "CMYK"):
        assert near(rgb[4, 4], RED) and near(rgb[4, 44], GREEN) and near(rgb[28, 4], BLUE)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB with a clear colour", "L with a clear colour", "P with a clear colour"])
def test_transparency_shows_the_background_or_weighs(tmp_path: Path, mode: str) -> None:
    """The left half is clear, the right half opaque, in every way in which a PNG can say so."""
    shade = np.full((8, 8), 100, np.uint8)
    shade[:, :4] = 30
    alpha = np.full((8, 8), 255, np.uint8)
    alpha[:, :4] = 0
    grey = Image.fromarray(shade)
    more: dict[str, object] = {}
    if "clear" in mode:
        image = grey.convert(mode.split()[0])
        more = {"transparency": {"RGB": (30, 30, 30), "L": 30, "P": image.getpixel((0, 0))}[image.mode]}
    elif mode == "P":
        image = grey.convert("P")
        levels = bytearray(b"\xff" * 256)
        levels[image.getpixel((0, 0))] = 0  # type: ignore[index]
        more = {"transparency": bytes(levels)}
    else:
        image = grey.convert(mode)
        image.putalpha(Image.fromarray(alpha))
    image.save(tmp_path / "a.png", **more)
    rgb, weight = read(tmp_path / "a.png", background="#ff8000")
    assert weight is None
    assert rgb[0, 0].tolist() == [255, 128, 0] and near(rgb[0, 7], (100, 100, 100), 3)
    rgb, weight = read(tmp_path / "a.png", transparency="weight")
    assert weight is not None and np.array_equal(weight, alpha)


def test_half_transparency_blends(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 100, 200, 51)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", background="white")[0][0, 0].tolist() == [204, 224, 244]


def test_opaque_alpha_weighs_nothing(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 100, 200, 255)).save(tmp_path / "a.png")
    assert read(tmp_path / "a.png", transparency="weight")[1] is None


def test_a_background_that_is_no_colour_is_refused(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(SettingsError, match="background is 'whiite', which is no colour"):
        read(tmp_path / "a.png", background="whiite")


def test_the_first_frame_of_an_animation_is_taken(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN)]
    for name in ("a.webp", "a.png", "a.gif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
        assert near(read(tmp_path / name)[0][0, 0], RED, 3)


@pytest.mark.skipif(not features.check_module("littlecms2"), reason="this Pillow has no colour management")
def test_colour_profiles_are_brought_to_srgb(tmp_path: Path) -> None:
    """A profile whose red and blue primaries are exchanged makes red pixels blue."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    swapped = profile.replace(b"rXYZ", b"_XYZ", 1).replace(b"bXYZ", b"rXYZ", 1).replace(b"_XYZ", b"bXYZ", 1)
    swapped = swapped.replace("sRGB".encode("utf-16-be"), "mine".encode("utf-16-be"))
    for name, written in (("srgb.png", profile), ("swapped.png", swapped), ("broken.png", b"no profile at all")):
        quarters().save(tmp_path / name, icc_profile=written)
    assert np.array_equal(read(tmp_path / "srgb.png")[0], np.array(quarters()))
    assert np.array_equal(read(tmp_path / "broken.png")[0], np.array(quarters()))
    assert near(read(tmp_path / "swapped.png")[0][4, 4], (RED[2], RED[1], RED[0]))


def test_a_mask_weighs_and_is_brought_to_the_pictures_size(tmp_path: Path) -> None:
    quarters().save(tmp_path / "a.png")
    mask = np.zeros((16, 24), np.uint8)
    mask[:, 12:] = 255
    Image.fromarray(mask).save(tmp_path / "a.mask.png")
    _, weight = read(tmp_path / "a.png", tmp_path / "a.mask.png")
    assert weight is not None and weight.shape == (32, 48)
    assert not weight[:, :22].any() and (weight[:, 26:] == 255).all()
    assert read(tmp_path / "a.png", tmp_path / "a.mask.png", masks=False)[1] is None


def test_mask_and_transparency_multiply(tmp_path: Path) -> None:
    Image.new("RGBA", (4, 4), (0, 0, 0, 128)).save(tmp_path / "a.png")
    Image.new("L", (4, 4), 128).save(tmp_path / "a.mask.png")
    _, weight = read(tmp_path / "a.png", tmp_path / "a.mask.png", transparency="weight")
    assert weight is not None and set(weight.flatten().tolist()) == {64}
    Image.new("LA", (4, 4), (255, 51)).save(tmp_path / "a.mask.png")  # white that is hardly there
    _, weight = read(tmp_path / "a.png", tmp_path / "a.mask.png")
    assert weight is not None and set(weight.flatten().tolist()) == {51}


def test_a_masks_exif_orientation_counts_too(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    mask = Image.new("L", (8, 8), 0)
    mask.paste(255, (0, 0, 8, 4))
    mask.save(tmp_path / "a.mask.png", exif=exif)
    _, weight = read(tmp_path / "a.png", tmp_path / "a.mask.png")
    assert weight is not None and not weight[:4].any() and weight[4:].all()


# What cannot be read


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "bmp", "avif"])
@pytest.mark.parametrize("share", [0.003, 0.3, 0.9])
def test_a_truncated_picture_is_an_error_and_no_traceback(tmp_path: Path, extension: str, share: float) -> None:
    if extension == "avif" and "AVIF" not in pictures.formats():
        pytest.skip("this Pillow reads no AVIF")
    data = _saved(tmp_path / f"a.{extension}", noise()).read_bytes()
    (tmp_path / f"a.{extension}").write_bytes(data[:max(8, int(len(data) * share))])
    with pytest.raises(DatasetError) as found:
        pictures.decode(tmp_path / f"a.{extension}", "sub/a")
    assert str(found.value).startswith("sub/a is truncated or damaged and cannot be read to its end.")
    assert found.value.problem.where == "sub/a"


@pytest.mark.parametrize("extension", ["png", "jpg", "webp", "avif"])
def test_damaged_bytes_never_raise_anything_but_an_error_for_people(tmp_path: Path, extension: str) -> None:
    if extension == "avif" and "AVIF" not in pictures.formats():
        pytest.skip("this Pillow reads no AVIF")
    data = _saved(tmp_path / f"a.{extension}", noise()).read_bytes()
    refused = 0
    for seed in range(40):
        random = np.random.default_rng(seed)
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 1 + seed % 20):
            damaged[place] = int(random.integers(256))
        (tmp_path / "b").write_bytes(damaged)
        try:
            pictures.decode(tmp_path / "b", "b")
        except DatasetError:
            refused += 1
    assert refused


def test_pictures_above_the_limit_are_refused_undecoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _saved(tmp_path / "a.png", noise(60, 40))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2399)
    with pytest.raises(DatasetError, match="a.png has more than 0.002 million pixels"):
        picture(tmp_path / "a.png")
    monkeypatch.setattr(pictures, "MAX_PIXELS", 2400)
    assert picture(tmp_path / "a.png").size == (60, 40)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    head = struct.pack(">2I5B", 100_000, 100_000, 1, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", len(head)) + b"IHDR" + head
                                     + struct.pack(">I", zlib.crc32(b"IHDR" + head)) + struct.pack(">I", 9) + b"IDAT" + bytes(13))
    with pytest.raises(DatasetError, match="more than 178.957 million pixels"):
        picture(tmp_path / "a.png")


def test_what_is_no_picture_is_named_as_such(tmp_path: Path) -> None:
    for name, data, words in (("a.png", b"", "is empty"), ("b.png", b"<svg/>" * 9, "is no picture that can be read"),
                              ("c.png", BytesIO().getvalue() + b"\x89PNG\r\n\x1a\n", "is truncated")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DatasetError, match=f"{name} {words}"):
            picture(tmp_path / name)
    with pytest.raises(DatasetError, match="gone.png cannot be opened: No such file"):
        picture(tmp_path / "gone.png")


def test_an_avif_that_pillow_cannot_read_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.avif").write_bytes(b"\0\0\0\x20ftypavif" + bytes(40))
    monkeypatch.setattr(pictures, "formats", lambda: ["PNG", "JPEG"])
    with pytest.raises(DatasetError, match="a.avif is an AVIF picture, which the installed Pillow .* Save it as PNG, or update"):
        picture(tmp_path / "a.avif")


# Fitting


def test_fitting_covers_the_target_and_cuts_the_middle() -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255
    fitted, weight, size = pictures.fit(pixels, None, (50, 50), "center", (0.0, 0.0))
    assert fitted.shape == (50, 50, 3) and weight is None
    assert (size.original, size.crop, size.target) == ((300, 100), (50, 0), (50, 50))
    assert (fitted[:, 3:-3] == 255).all()


def test_a_picture_of_the_targets_size_is_not_touched() -> None:
    pixels = np.array(noise(64, 48))
    fitted, _, size = pictures.fit(pixels, None, (64, 48), "random", (0.3, 0.9))
    assert np.array_equal(fitted, pixels) and size.crop == (0, 0)


@pytest.mark.parametrize(("at", "crop"), [((0.0, 0.0), (0, 0)), ((1.0, 1.0), (100, 0)), ((0.25, 0.7), (25, 0))])
def test_random_crops_are_where_they_were_drawn(at: tuple[float, float], crop: tuple[int, int]) -> None:
    pixels = np.zeros((50, 150, 3), np.uint8)
    pixels[..., 0] = np.arange(150)
    fitted, _, size = pictures.fit(pixels, None, (50, 50), "random", at)
    assert size.crop == crop and fitted[0, :, 0].tolist() == list(range(crop[0], crop[0] + 50))


@pytest.mark.parametrize(("width", "height", "target"), [
    (301, 199, (64, 48)), (33, 41, (64, 64)), (64, 640, (32, 128)), (1, 1, (8, 8)), (999, 7, (8, 32)),
])
@pytest.mark.parametrize("crop", ["center", "random"])
def test_weights_stay_with_their_pixels(width: int, height: int, target: tuple[int, int], crop: str) -> None:
    """A bright disc with a weight of the same shape: after fitting both still cover the same pixels."""
    y, x = np.mgrid[:height, :width]
    disc = (np.hypot(x - width * 0.55, y - height * 0.45) < 0.35 * min(width, height)).astype(np.uint8) * 255
    pixels, weight, size = pictures.fit(np.stack([disc] * 3, -1), disc, target, crop, (0.6, 0.3))
    assert weight is not None and pixels.shape == (target[1], target[0], 3) and weight.shape == (target[1], target[0])
    assert size.original == (width, height) and size.target == target
    assert np.mean(np.abs(pixels[..., 0].astype(int) - weight)) < 10
    sure = (weight == 0) | (weight == 255)
    assert (np.abs(pixels[..., 0].astype(int) - weight)[sure] < 40).all()


def test_reducing_does_not_alias() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    fitted, _, _ = pictures.fit(stripes, None, (50, 50), "center", (0.5, 0.5))
    assert fitted[5:-5, 5:-5].std() < 3 and abs(fitted.mean() - 127.5) < 2
