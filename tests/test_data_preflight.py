"""Preflight: every problem at once, before any model is opened, and forecasts that hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aprendiz.data import buckets, pictures
from aprendiz.data.folder import Dataset, scan
from aprendiz.data.loader import Example, Plan
from aprendiz.data.preflight import Facts, Report, in_words, preflight
from aprendiz.draws import Draws
from aprendiz.errors import ProblemsError
from aprendiz.settings import Job


def paint(file: Path, seed: int = 0, size: tuple[int, int] = (72, 72), caption: str | None = "a dog") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).save(file)
    if caption is not None:
        file.with_suffix(".txt").write_text(caption, encoding="utf-8")
    return file


def job(folder: Path, **sections: dict[str, object]) -> Job:
    data = {"path": str(folder), **sections.pop("data", {})}
    return Job.read({"data": data, **sections})


def fly(wanted: Job, facts: Facts | None = None, resolution: int = 64, output: Path | None = None) -> Report:
    return preflight(wanted, scan(wanted.data), output=output, resolution=resolution, bucket_step=8, facts=facts)


def told(report: Report) -> dict[str, list[str]]:
    """English sentences by what they concern."""
    found: dict[str, list[str]] = {}
    for problem in report.problems:
        found.setdefault(problem.where, []).append(problem.english)
    return found


def words(caption: str) -> int:
    return len(caption.split())


def test_a_good_folder_has_no_problems_even_when_strict(tmp_path: Path) -> None:
    for seed in range(3):
        paint(tmp_path / f"{seed}.png", seed)
    report = fly(job(tmp_path), Facts(count_tokens=words), output=tmp_path / "out")
    assert report.problems == ()
    report.raise_if_bad(strict=True)


def test_every_problem_is_told_at_once_with_the_files_name_and_a_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "MAX_PIXELS", 70_000)
    paint(tmp_path / "good.png", 1)
    cut = paint(tmp_path / "sub/cut.jpg", 2)
    cut.write_bytes(cut.read_bytes()[:1500])
    paint(tmp_path / "huge.png", 3, (300, 300))
    paint(tmp_path / "small.png", 4, (20, 20))
    paint(tmp_path / "sub/twin.png", 1)
    paint(tmp_path / "bare.png", 5, caption=None)
    paint(tmp_path / "blank.png", 6, caption="  ")
    paint(tmp_path / "long.png", 7, caption="word " * 300)
    paint(tmp_path / "torn.png", 8)
    (tmp_path / "torn.caption").write_text("a cat", encoding="utf-8")
    paint(tmp_path / "coded.png", 9)
    (tmp_path / "coded.txt").write_text("a dog", encoding="utf-16")
    paint(tmp_path / "strip.png", 10, (900, 72))
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    report = fly(job(tmp_path), Facts(count_tokens=words))
    expected = {
        "bare.png": "bare.png has no caption. Write bare.txt,",
        "blank.png": "blank.txt holds no caption, so blank.png is trained without one. Write one into it,",
        "coded.txt": "coded.txt is written in UTF-16, but captions are read as UTF-8. Save it again as UTF-8.",
        "huge.png": "huge.png has more than 0.07 million pixels, more than is safe to open. Scale it down or remove it.",
        "long.png": "The caption of long.png has 300 tokens; those beyond 225 are cut off. Shorten it.",
        "small.png": "small.png is only 20 x 20 pixels: enlarged 3.2 times to 64 x 64, it is learned as blur. Use a larger one,",
        "strip.png": "strip.png is 900 x 72 pixels, longer than any size trained at: 68 % of it are cut away. Crop it yourself.",
        "sub/cut.jpg": "sub/cut.jpg is truncated or damaged and cannot be read to its end. Copy or download it again,",
        "sub/twin.png": "sub/twin.png is the same picture as good.png. Remove one;",
        "text.png": "text.png is no picture that can be read, whatever its name says. Save it anew as PNG or JPEG, or remove it.",
        "torn.png": "torn.png has two captions: 'a cat' in torn.caption, and 'a dog' in torn.txt. Keep one of them.",
    }
    found = told(report)
    assert sorted(found) == sorted(expected)
    for where, start in expected.items():
        assert len(found[where]) == 1 and found[where][0].startswith(start)
        assert str(tmp_path) not in found[where][0]
    assert {problem.where for problem in report.errors} == {"coded.txt", "huge.png", "sub/cut.jpg", "text.png", "torn.png"}
    with pytest.raises(ProblemsError) as stopped:
        report.raise_if_bad(strict=False)
    assert stopped.value.problems == report.errors and len(str(stopped.value).splitlines()) == 5


def test_warnings_stop_a_strict_run_only(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", caption=None)
    report = fly(job(tmp_path))
    report.raise_if_bad(strict=False)
    with pytest.raises(ProblemsError, match="a.png has no caption"):
        report.raise_if_bad(strict=True)


def test_a_picture_too_small_is_enlarged_or_left_out_and_said_so(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    paint(tmp_path / "b.png", 2, (63, 63))
    paint(tmp_path / "c.png", 3, (40, 60))
    assert list(told(fly(job(tmp_path)))) == ["c.png"]  # a pixel less is no blur
    report = fly(job(tmp_path, data={"allow_upscale": False}))
    assert (report.forecast.pictures, report.forecast.left_out) == (1, 2)
    assert told(report)["c.png"] == ["c.png is only 40 x 60 pixels and is left out, because allow_upscale is off. "
                                     "Use a larger one, or lower resolution."]
    assert not report.errors


def test_leaving_out_every_picture_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1, (40, 40))
    report = fly(job(tmp_path, data={"allow_upscale": False}))
    assert [problem.where for problem in report.errors] == ["data.allow_upscale"]


def test_holding_out_every_picture_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path / "a.png", 1)
    report = fly(job(tmp_path, data={"validation_share": 0.5}))
    assert [problem.english for problem in report.errors] == [
        "validation_share 0.5 of 1 pictures leaves none to train on. Lower it, or add pictures."]
    paint(tmp_path / "b.png", 2)
    report = fly(job(tmp_path, data={"validation_share": 0.5}))
    assert report.problems == () and (report.forecast.pictures, report.forecast.validation) == (1, 1)


def test_a_folder_without_pictures_is_one_error(tmp_path: Path) -> None:
    report = fly(job(tmp_path))
    assert [problem.where for problem in report.errors] == ["data.path"]
    assert report.forecast.pictures == report.forecast.batches == 0 and report.forecast.epochs == 0


def test_settings_that_cannot_be_are_errors(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    wanted = job(tmp_path, data={"background": "blurple"})
    report = preflight(wanted, scan(wanted.data), output=None, resolution=64, bucket_step=128)
    assert [problem.english for problem in report.errors] == [
        "background is 'blurple', which is no colour. Write one such as '#ffffff' or 'white'.",
        "resolution 64 is below bucket_step 128, which widths and heights are multiples of. Raise the one or lower the other."]


def test_masks_are_read_too(tmp_path: Path) -> None:
    for seed, name in enumerate(("black", "cut", "long", "good")):
        paint(tmp_path / f"{name}.png", seed)
    Image.new("L", (72, 72), 0).save(tmp_path / "black.mask.png")
    Image.new("L", (72, 36), 255).save(tmp_path / "long.mask.png")
    Image.new("L", (36, 36), 255).save(tmp_path / "good.mask.png")
    (tmp_path / "cut.mask.png").write_bytes((tmp_path / "cut.png").read_bytes()[:400])
    report = fly(job(tmp_path))
    assert told(report) == {
        "black.png": ["Nothing of black.png counts: it is transparent or masked everywhere. Lighten its mask, or remove it."],
        "cut.mask.png": ["cut.mask.png is truncated or damaged and cannot be read to its end. Copy or download it again, "
                         "or remove it."],
        "long.png": ["The mask of long.png is 72 x 36 pixels and the picture 72 x 72, so it is stretched. Give it the same "
                     "shape."]}
    assert [problem.where for problem in report.errors] == ["cut.mask.png"]
    assert fly(job(tmp_path, data={"masks": False})).problems == ()


def test_an_output_folder_that_cannot_be_written_is_an_error_and_nothing_is_left_behind(tmp_path: Path) -> None:
    paint(tmp_path / "pictures/a.png")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    report = fly(job(tmp_path / "pictures"), output=tmp_path / "file/aprendiz/run")
    assert [(problem.where, problem.english.split(": ")[0]) for problem in report.errors] == [
        ("output", f"{tmp_path / 'file/aprendiz/run'} cannot be written")]
    assert fly(job(tmp_path / "pictures"), output=tmp_path / "new/folder").problems == ()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder here is closed to the superuser too")
def test_a_folder_where_nobody_may_write_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path / "pictures/a.png")
    errors = fly(job(tmp_path / "pictures"), output=Path("/proc/self/run")).errors
    assert [problem.english.split(": ")[0] for problem in errors] == ["/proc/self/run cannot be written"]


def test_a_disk_that_will_not_hold_the_run_is_an_error(tmp_path: Path) -> None:
    paint(tmp_path / "a.png")
    wanted = job(tmp_path, training={"steps": 1000, "save_every_steps": 100, "keep_checkpoints": 2})
    facts = Facts(free_disk=10_000_000, trained_parameters=1_000_000, text_bytes=1000)
    report = fly(wanted, facts, output=tmp_path)
    # Two states kept and one being written, each masters and two moments; eleven usable files of two bytes a parameter.
    assert report.forecast.checkpoint_bytes == 3 * 12_000_000 + 11 * 2_000_000
    assert [problem.english for problem in report.errors] == [
        f"The run needs about 58 MB in {tmp_path}, and 10 MB are free. Free some space, choose another folder with --out, "
        "or save less often."]
    report = fly(wanted, Facts(trained_parameters=1_000_000), output=tmp_path)
    assert report.problems == () and report.forecast.free_bytes is not None and report.forecast.free_bytes > 58e6


def test_pictures_that_keep_their_size_are_warned_of_where_they_lose_much_or_stand_alone(
        tmp_path: Path, answers: Callable[[str, object], None]) -> None:
    paint(tmp_path / "fine.png", 1, (160, 96))
    paint(tmp_path / "like.png", 2, (163, 99))
    paint(tmp_path / "loses.png", 3, (15, 15))
    Image.new("L", (4104, 8)).save(tmp_path / "long.png")
    (tmp_path / "long.txt").write_text("a line", encoding="utf-8")
    report = fly(job(tmp_path, data={"resize": False}, training={"batch_size": 2}), resolution=512)
    found = told(report)
    assert found["long.png"] == ["long.png is 4104 x 8 pixels, and without resizing a side may have 4096. Make it smaller, or "
                                 "turn resize on."]
    assert found["loses.png"] == ["loses.png is 15 x 15 pixels, of which only 8 x 8 are multiples of bucket_step: 72 % of it are "
                                  "cut away. Lower bucket_step, or turn resize on."]
    assert found["data.resize"] == ["Of 3 sizes, 2 have fewer pictures than a batch of 2, which then shows some of them again. "
                                    "Set batch_size to 1, or turn resize on."]
    assert set(found) == {"long.png", "loses.png", "data.resize"}
    assert [problem.where for problem in report.errors] == ["long.png"] and report.forecast.sizes[(160, 96)] == 2
    for sentence in (found["long.png"][0], found["loses.png"][0], found["data.resize"][0]):
        answers("resize = false", sentence)


def _some(tmp_path: Path) -> None:
    paint(tmp_path / "3_sks dog/a.png", 1, (72, 72), None)
    paint(tmp_path / "3_sks dog/b.png", 2, (90, 72), None)
    paint(tmp_path / "c.png", 3, (150, 75))
    paint(tmp_path / "d.png", 4, (75, 150))


def _plan(dataset: Dataset, batch_size: int) -> Plan:
    targets = buckets.plan([picture.size for picture in dataset.pictures], 64, 8, True, True)
    examples = [Example(picture, target, (0,), (0,), picture.repeats)
                for picture, target in zip(dataset.pictures, targets) if target]
    return Plan(examples, batch_size, Draws(0))


@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_the_forecast_is_what_the_loader_will_deal_out(tmp_path: Path, batch_size: int) -> None:
    _some(tmp_path)
    wanted = job(tmp_path, training={"epochs": 2.5, "batch_size": batch_size})
    forecast = fly(wanted).forecast
    plan = _plan(scan(wanted.data), batch_size)
    assert forecast.batches == plan.batches and forecast.batch_size == batch_size
    assert forecast.steps == -(-plan.batches * 5 // 2) and forecast.epochs == forecast.steps / plan.batches
    assert (forecast.pictures, forecast.shown) == (4, 8)
    assert forecast.sizes == {(64, 64): 1, (72, 56): 1, (88, 40): 1, (40, 88): 1}


def test_the_forecast_of_steps_epochs_and_time(tmp_path: Path) -> None:
    _some(tmp_path)
    assert fly(job(tmp_path)).forecast.steps == 400
    forecast = fly(job(tmp_path, training={"steps": 12, "batch_size": 2}), Facts(seconds_per_step=10.0)).forecast
    assert (forecast.steps, forecast.batches, forecast.epochs, forecast.seconds) == (12, 6, 2.0, 120.0)


@pytest.mark.parametrize("length", [{"steps": 10}, {"epochs": 1.25}])
def test_a_warmup_as_long_as_the_run_is_warned_of(tmp_path: Path, length: dict[str, object]) -> None:
    _some(tmp_path)

    def warned(steps: int) -> list[str]:
        report = fly(job(tmp_path, optimizer={"warmup_steps": steps}, training=length))
        assert not report.errors
        return told(report).get("optimizer.warmup_steps", [])

    assert warned(9) == []
    assert warned(10) == ["warmup_steps is 10, but the run has 10 steps, so the learning rate only rises. Lower it, to a tenth "
                          "of the steps or less."]


def test_the_forecast_of_the_cache_counts_every_cut_and_caption(tmp_path: Path) -> None:
    _some(tmp_path)
    pixels = 64 * 64 + 72 * 56 + 2 * 88 * 40
    facts = Facts(text_bytes=1000)
    assert fly(job(tmp_path), facts).forecast.cache_bytes == 4 * 4 * pixels // 64 + 2 * 1000
    data = {"flip": True, "crop": "random", "crop_variants": 3, "latent_sampling": "random"}
    assert fly(job(tmp_path, data=data), facts).forecast.cache_bytes == 4 * 4 * pixels // 64 * 2 * 3 * 2 + 2 * 1000
    assert fly(job(tmp_path, data={**data, "crop_variants": 0}), facts).forecast.cache_bytes == 2000


def test_the_report_is_printed_in_words_and_not_a_hundred_times(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APRENDIZ_LANGUAGE", "en")
    for seed in range(12):
        paint(tmp_path / f"{seed:02}.png", seed, caption=None)
    (tmp_path / "12.png").write_bytes(b"")
    lines = fly(job(tmp_path, training={"steps": 24}), Facts(seconds_per_step=5, free_disk=2_500_000_000)).lines()
    assert lines[:4] == ["Pictures: 12; with repeats 12 an epoch; sizes: 1; kept apart for validation: 0.",
                         "Steps: 24, batch size 1; epochs: 2.0, of 12 steps each.",
                         "Disk: about 249 kB for what is encoded once and 0 bytes for checkpoints; free: 2.5 GB.",
                         "Time: about 2 min of training."]
    assert lines[4] == "Error: 12.png is empty: it has no bytes. Copy it again, or remove it."
    assert lines[5].startswith("Warning: 00.png has no caption.") and len(lines) == 11
    assert lines[-1] == "... and 7 more like this."


def test_progress_is_told_picture_by_picture(tmp_path: Path) -> None:
    _some(tmp_path)
    wanted, seen = job(tmp_path), []
    preflight(wanted, scan(wanted.data), output=None, resolution=64, bucket_step=8,
              progress=lambda done, of: seen.append((done, of)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_bytes_in_words() -> None:
    sizes = (0, 999, 1000, 1_550_000, 2.5e9, 3e12)
    assert [in_words(size) for size in sizes] == ["0 bytes", "999 bytes", "1 kB", "1.55 MB", "2.5 GB", "3 TB"]
