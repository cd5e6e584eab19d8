"""The resumable state: whole or not there, read back as it was written, the newest whole one counts."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from aprendiz.errors import RunError
from aprendiz.state import State, latest, read, saved, write


def state(step: int) -> State:
    return State(step, {"master": torch.full((5,), float(step)), "optimizer.0.step": torch.tensor(float(step))},
                 {"best": [0.5, 3], "optimizer": {}})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    folder = write(tmp_path, state(7), keep=2)
    back = read(folder)
    assert back is not None and back.step == 7 and back.plain["best"] == [0.5, 3]
    assert all(torch.equal(tensor, back.tensors[name]) for name, tensor in state(7).tensors.items())


def test_the_last_good_ones_are_kept(tmp_path: Path) -> None:
    for step in range(1, 6):
        write(tmp_path, state(step), keep=2)
    assert [folder.name for folder in saved(tmp_path)] == ["step-000004", "step-000005"]
    assert not list(tmp_path.glob(".*"))


def test_the_newest_is_told_by_its_number(tmp_path: Path) -> None:
    write(tmp_path, state(999_999), keep=1)
    write(tmp_path, state(1_000_000), keep=1)
    assert [folder.name for folder in saved(tmp_path)] == ["step-1000000"]
    found = latest(tmp_path)
    assert found is not None and found.step == 1_000_000


def test_a_step_that_is_saved_is_never_taken_away_to_be_saved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path, state(7), keep=2)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert write(tmp_path, state(7), keep=2) == folder and read(folder) is not None
    (folder / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="The disk is full"):
        write(tmp_path, state(7), keep=2)


def test_a_save_that_the_disk_does_not_take_leaves_the_one_before_and_nothing_else(tmp_path: Path,
                                                                                  monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path, state(1), keep=2)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match="The disk is full"):
        write(tmp_path, state(2), keep=2)
    assert list(tmp_path.iterdir()) == [before]


@pytest.mark.parametrize("harm", ["torn", "gone", "changed", "no json"])
def test_a_harmed_state_is_passed_over_for_the_one_before(tmp_path: Path, harm: str) -> None:
    write(tmp_path, state(1), keep=5)
    folder = write(tmp_path, state(2), keep=5)
    tensors = folder / "state.safetensors"
    data = tensors.read_bytes()
    if harm == "torn":
        tensors.write_bytes(data[:-3])
    elif harm == "gone":
        tensors.unlink()
    elif harm == "changed":
        tensors.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        (folder / "state.json").write_text("{", encoding="utf-8")
    found = latest(tmp_path)
    assert found is not None and found.step == 1


def test_a_save_that_was_cut_off_is_no_state_and_does_not_stand_in_the_way(tmp_path: Path) -> None:
    write(tmp_path, state(1), keep=5)
    (tmp_path / ".step-000002.tmp").mkdir()
    (tmp_path / ".step-000002.tmp" / "state.safetensors").write_bytes(b"half")
    found = latest(tmp_path)
    assert found is not None and found.step == 1
    write(tmp_path, state(2), keep=5)
    found = latest(tmp_path)
    assert found is not None and found.step == 2
    assert not list(tmp_path.glob(".*"))


def test_an_empty_folder_holds_none(tmp_path: Path) -> None:
    assert latest(tmp_path) is None
