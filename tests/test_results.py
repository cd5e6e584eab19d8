"""A finished run's files go where the host looks, once, over nothing, each with the name that calls it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from aprendiz.errors import RunError
from aprendiz.formats import container
from aprendiz.run import Run
from aprendiz.settings import Job
from aprendiz.views import results


def finished(folder: Path, method: str, name: str = "fish", value: float = 1.0) -> Run:
    """A run with its result's files, as its worker leaves them."""
    run = Run.create(folder / "out", Job.read({"method": method, "data": str(folder), "trigger": "sks", "name": name}), "digest")
    files = [run.file, run.file.with_name(f"{name}-lora.safetensors")] if method == "pivotal" else [run.file]
    for file in files:
        alias = {"ss_output_name": file.stem, "ss_network_dim": "4"} if method == "lora" or file != run.file else {}
        save_file({"a": torch.full((4,), value)}, file, alias)
        # A picture named like an embedding would itself be read as one.
        for ending in (".json", ".png" if alias else ".preview.png"):
            file.with_suffix(ending).write_bytes(b"{}")
    return run


@pytest.mark.parametrize(("method", "places", "prompt"), [
    ("lora", {"lora": "fish"}, "<lora:fish:1> sks"),
    ("textual_inversion", {"embedding": "fish"}, "fish"),
    ("controlnet", {"controlnet": "fish"}, ""),
    ("pivotal", {"embedding": "fish", "lora": "fish-lora"}, "fish <lora:fish-lora:1>"),
])
def test_each_kind_goes_into_its_folder_with_what_calls_it(tmp_path: Path, method: str, places: dict[str, str],
                                                           prompt: str) -> None:
    run = finished(tmp_path, method)
    placed = results.place(run, lambda kind: tmp_path / kind)
    assert {kind: file.stem for kind, file in placed.items()} == places
    for kind, file in placed.items():
        names = sorted(one.name for one in (tmp_path / kind).iterdir())
        picture = ".png" if kind == "lora" else ".preview.png"
        assert names == [f"{file.stem}.json", f"{file.stem}{picture}", f"{file.stem}.safetensors"]
    assert results.prompt(placed, "sks") == prompt
    assert results.place(run, lambda kind: tmp_path / kind) == placed  # asked for again: nothing new


def test_a_name_that_is_taken_gives_the_next_one_and_the_lora_an_alias_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "Lora"
    folder.mkdir()
    save_file({"a": torch.zeros(4)}, folder / "fish.safetensors", {"ss_output_name": "fish"})
    run = finished(tmp_path, "lora")
    before = (folder / "fish.safetensors").read_bytes()
    placed = results.place(run, lambda kind: folder)
    assert placed == {"lora": folder / "fish-2.safetensors"}
    assert (folder / "fish.safetensors").read_bytes() == before
    assert container.read_header(placed["lora"]).metadata == {"ss_output_name": "fish-2", "ss_network_dim": "4"}
    assert torch.equal(load_file(placed["lora"])["a"], torch.ones(4))
    assert results.prompt(placed, None) == "<lora:fish-2:1>"
    assert results.place(run, lambda kind: folder) == placed


def test_a_file_of_another_form_is_placed_once_and_never_over_another(tmp_path: Path) -> None:
    run = Run.create(tmp_path / "out", Job.read({"method": "textual_inversion", "data": str(tmp_path), "name": "fish"}), "digest")
    run.file.write_bytes(b"of an older form")
    placed = results.place(run, lambda kind: tmp_path / kind)
    assert results.place(run, lambda kind: tmp_path / kind) == placed
    placed["embedding"].write_bytes(b"of somebody else")
    assert results.place(run, lambda kind: tmp_path / kind) == {"embedding": tmp_path / "embedding" / "fish-2.safetensors"}
    assert placed["embedding"].read_bytes() == b"of somebody else"


def test_a_result_that_was_thrown_away_is_told_of(tmp_path: Path, answers: Callable[[str, object], None]) -> None:
    run = finished(tmp_path, "lora")
    run.file.unlink()
    with pytest.raises(RunError, match="no longer in its folder") as told:
        results.place(run, lambda kind: tmp_path / kind)
    answers("a finished run's result was thrown away", told.value)


def test_a_kind_that_the_host_has_no_folder_for_stays_where_it_is(tmp_path: Path) -> None:
    assert results.place(finished(tmp_path, "lora"), lambda kind: None) == {}
