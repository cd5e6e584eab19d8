"""The cache: encoded once, keyed by all it depends on, never half a file, bounded."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lessons import pictures

from aprendiz.data.cache import Cache, Cut, encode_cuts, encode_now, encode_texts, fingerprint
from aprendiz.data.folder import Picture, scan
from aprendiz.families import Base
from aprendiz.registry import families
from aprendiz.settings import DataSettings


@pytest.fixture(scope="module")
def base() -> Base:
    return families()["sd1"].tiny()


@pytest.fixture
def found(tmp_path: Path) -> list[Picture]:
    return list(scan(DataSettings(path=str(pictures(tmp_path / "red", 3)))).pictures)


def nothing(_done: int, _of: int) -> None:
    """Progress that nobody watches."""


def test_what_is_encoded_once_is_read_the_second_time_and_is_the_same(base: Base, found: list[Picture], tmp_path: Path) -> None:
    cuts, settings = [Cut(picture, (64, 64)) for picture in found], DataSettings(path="x", latent_sampling="random")
    first, second = Cache(tmp_path / "cache"), Cache(tmp_path / "cache")
    made = encode_cuts(base, cuts, settings, first, nothing)
    read = encode_cuts(base, cuts, settings, second, nothing)
    assert (first.made, second.made, second.hits) == (3, 0, 3)
    for a, b in zip(made, read):
        assert torch.equal(a.mean_CHW, b.mean_CHW) and a.size == b.size
        assert a.std_CHW is not None and b.std_CHW is not None and torch.equal(a.std_CHW, b.std_CHW)


@pytest.mark.parametrize("change", [{"flip": True}, {"at": (0.1, 0.9)}, {"bucket": (128, 64)}, {"resize": False}])
def test_another_look_at_a_picture_is_another_entry(base: Base, found: list[Picture], tmp_path: Path,
                                                    change: dict[str, object]) -> None:
    cache, settings = Cache(tmp_path / "cache"), DataSettings(path="x", crop="random")
    cut = Cut(found[0], (64, 64))
    encode_cuts(base, [cut], settings, cache, nothing)
    encode_cuts(base, [replace(cut, **change)], settings, cache, nothing)
    assert (cache.made, cache.hits) == (2, 0)


def test_other_weights_are_other_entries(base: Base, found: list[Picture], tmp_path: Path) -> None:
    other = families()["sd1"].tiny(seed=1)
    assert base.vae is not None and other.vae is not None
    assert fingerprint(base.vae) != fingerprint(other.vae)
    cache = Cache(tmp_path / "cache")
    for one in (base, other):
        encode_cuts(one, [Cut(found[0], (64, 64))], DataSettings(path="x"), cache, nothing)
        encode_texts(one, ["a cat"], 75, cache, nothing)
    assert (cache.made, cache.hits) == (4, 0)


def test_a_mirrored_cut_is_the_mirrored_picture(base: Base, found: list[Picture], tmp_path: Path) -> None:
    from PIL import Image, ImageOps
    with Image.open(found[0].file) as picture:
        ImageOps.mirror(picture).save(tmp_path / "mirrored.png")
    turned = replace(found[0], file=tmp_path / "mirrored.png")
    cuts = [Cut(found[0], (64, 64), flip=True), Cut(turned, (64, 64)), Cut(found[0], (64, 64))]
    flipped, mirrored, plain = (one.mean_CHW for one in encode_cuts(base, cuts, DataSettings(path="x"), Cache(None), nothing))
    assert torch.allclose(flipped, mirrored, atol=1e-5)
    assert not torch.allclose(flipped, plain, atol=1e-3)


@pytest.mark.parametrize(("at", "crop"), [((0.0, 0.0), (128, 0)), ((1.0, 0.0), (0, 0)), ((0.25, 0.0), (96, 0))])
def test_a_mirrored_cut_is_told_where_it_lies_in_the_mirrored_picture(base: Base, tmp_path: Path, at: tuple[float, float],
                                                                      crop: tuple[int, int]) -> None:
    from PIL import Image
    grey = np.random.default_rng(0).integers(0, 256, (64, 192), dtype=np.uint8)
    Image.fromarray(grey).save(tmp_path / "wide.png")
    wide, settings = Picture(tmp_path / "wide.png", (192, 64), "", ("",), name="wide.png"), DataSettings(path="x", crop="random")
    Image.fromarray(grey[:, ::-1]).save(tmp_path / "turned.png")
    turned = replace(wide, file=tmp_path / "turned.png")
    cuts = [Cut(wide, (64, 64), at, flip=True), Cut(turned, (64, 64), (crop[0] / 128, 0.0))]
    flipped, mirrored = encode_now(base, cuts, settings)
    assert flipped.size == mirrored.size and flipped.size.crop == crop
    assert torch.allclose(flipped.mean_CHW, mirrored.mean_CHW, atol=1e-5)


@pytest.mark.parametrize("broken", [b"", b"\x10\0\0\0\0\0\0\0{}", b"no safetensors at all"])
def test_a_broken_file_is_made_again(base: Base, tmp_path: Path, broken: bytes) -> None:
    cache = Cache(tmp_path / "cache")
    [state] = encode_texts(base, ["a cat"], 75, cache, nothing)
    [file] = (tmp_path / "cache").glob("*/*.safetensors")
    file.write_bytes(broken)
    [again] = encode_texts(base, ["a cat"], 75, cache, nothing)
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in state.tensors().items())
    assert cache.made == 2


def test_the_oldest_go_when_the_folder_grows_past_its_bound(base: Base, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache")
    for n, text in enumerate(("a cat", "a dog", "a cow")):
        encode_texts(base, [text], 75, cache, nothing)
        newest = max((tmp_path / "cache").glob("*/*.safetensors"), key=lambda file: file.stat().st_mtime_ns)
        os.utime(newest, (1_000_000 + n, 1_000_000 + n))
    size = newest.stat().st_size
    Cache(tmp_path / "cache", size_gb=1.5 * size / 1e9).trim()
    assert list((tmp_path / "cache").glob("*/*.safetensors")) == [newest]


def test_what_was_read_holds_no_file_that_another_run_may_replace(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    cache.put("ab" * 20, {"mean": torch.arange(4096.0)})
    tensors = cache.get("ab" * 20)
    assert tensors is not None
    file = next(tmp_path.glob("*/*.safetensors"))
    with file.open("r+b") as opened:
        opened.write(bytes(file.stat().st_size))
    assert torch.equal(tensors["mean"], torch.arange(4096.0))


def test_files_that_another_run_removes_or_holds_are_no_trouble(tmp_path: Path) -> None:
    cache = Cache(tmp_path, size_gb=1e-6)
    for i in range(3):
        cache.put(f"{i}" * 40, {"mean": torch.zeros(200)})
    (tmp_path / "00" / "gone.safetensors").symlink_to(tmp_path / "nowhere")
    held = tmp_path / "00" / "held.safetensors"
    held.mkdir()  # as little to be removed as an open file on Windows
    os.utime(held, (0, 0))
    cache.trim()
    assert held.is_dir() and len([file for file in tmp_path.glob("*/*.safetensors") if file.is_file()]) <= 1


def test_masks_weigh_latent_pixels_by_their_area(base: Base, tmp_path: Path) -> None:
    from PIL import Image
    folder = pictures(tmp_path / "red", 1, (64, 64))
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(folder / "0.mask.png")
    [picture] = scan(DataSettings(path=str(folder))).pictures
    [encoded] = encode_cuts(base, [Cut(picture, (64, 64))], DataSettings(path=str(folder)), Cache(None), nothing)
    weight = encoded.weight_1HW
    assert weight is not None and weight.shape[-2:] == encoded.mean_CHW.shape[-2:]
    half = weight.shape[-1] // 2
    assert bool((weight[..., :half] == 1).all()) and bool((weight[..., half:] == 0).all())
