"""A killed run loses nothing: whatever the moment, it resumes and ends with the very weights of a run that was left alone.

Five kills of a LoRA in the core suite, thirty in the slow lane (`make test-quality`), at least five of them inside a save; two of
every other method.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from aprendiz import registry
from aprendiz.run import Run

STEPS = 24
FLAGS = {"lora": ("--rank", "8", "--targets", "all"), "pivotal": ("--rank", "4"), "textual_inversion": ("--vectors", "3")}


def train(pictures: Path, out: Path, method: str = "lora") -> subprocess.Popen[bytes]:
    """A training on micro in a process of its own, with a state saved after every step."""
    command = [sys.executable, "-m", "aprendiz", "train", method, "--base", "micro", "--data", str(pictures), "--out", str(out),
               "--name", "killed", "--steps", str(STEPS if method == "lora" else STEPS // 2), *FLAGS.get(method, ()),
               "--batch-size", "2", "--save-every-steps", "1", "--learning-rate", "1e-3",
               "--caption-dropout", "0.1", "--ema-decay", "0.9", "--crop", "random", "--flip", "--sample-every-steps", "1000",
               "--sampler-steps", "2"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def result(out: Path) -> dict[str, object]:
    """Every tensor of what a run left at its end."""
    folder = out / "aprendiz" / "killed"
    files = [file for file in folder.glob("killed*.safetensors") if not re.match(r"killed-\d", file.name)]
    return {f"{file.name}: {name}": tensor for file in files for name, tensor in load_file(file).items()}


def inside_a_save(folder: Path) -> bool:
    return any((folder / "checkpoints").glob(".step-*.tmp"))


def kill_somewhere(process: subprocess.Popen[bytes], folder: Path, moment: random.Random, in_save: bool) -> bool:
    """Kill the process between two steps, in a step or in a save; whether it was seen to be in a save.

    False too if it ended before.
    """
    begun_with = Run.open(folder).step if folder.exists() else 0
    until = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < until and not (folder.exists() and Run.open(folder).step > begun_with):
        time.sleep(0.02)
    if in_save:
        while process.poll() is None and not inside_a_save(folder):
            pass
    else:
        time.sleep(moment.uniform(0, 1.5))
    seen = inside_a_save(folder)
    process.kill()
    process.wait()
    return seen and inside_a_save(folder)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from aprendiz.micro.pictures import write_pictures
    folder = tmp_path_factory.mktemp("fish")
    write_pictures(folder, "fish", 6, seed=0)
    return folder


@pytest.fixture(scope="module")
def straight(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    out = tmp_path_factory.mktemp("straight")
    assert train(pictures, out).wait() == 0
    return result(out)


def survive(pictures: Path, out: Path, straight: dict[str, object], kills: int, seed: int, method: str = "lora") -> int:
    """Kill a run so many times, let it end, and compare; how many of the kills fell inside a save."""
    moment, in_saves = random.Random(seed), 0
    folder = out / "aprendiz" / "killed"
    for n in range(kills):
        process = train(pictures, out, method)
        in_saves += kill_somewhere(process, folder, moment, in_save=n % 2 == 0)
        if (folder / "killed.safetensors").exists():
            break
    assert train(pictures, out, method).wait() == 0
    ended = result(out)
    assert set(ended) == set(straight)
    assert all(bool((ended[name] == straight[name]).all()) for name in ended)
    assert not list((folder / "checkpoints").glob(".*.tmp"))
    attempts = {event["attempt"] for event in Run.open(folder).events()}
    assert len(attempts) >= 2
    return in_saves


def test_five_kills_change_no_bit(pictures: Path, straight: dict[str, object], tmp_path: Path) -> None:
    assert survive(pictures, tmp_path, straight, kills=5, seed=1) >= 1


@pytest.mark.methods
@pytest.mark.parametrize("method", [name for name in registry.methods() if name != "lora"])
def test_two_kills_change_no_bit_of_any_method(method: str, pictures: Path, tmp_path: Path) -> None:
    assert train(pictures, tmp_path / "straight", method).wait() == 0
    survive(pictures, tmp_path / "killed", result(tmp_path / "straight"), kills=2, seed=3, method=method)


@pytest.mark.quality
def test_thirty_kills_change_no_bit(pictures: Path, straight: dict[str, object], tmp_path: Path) -> None:
    in_saves = sum(survive(pictures, tmp_path / str(n), straight, kills=5, seed=10 + n) for n in range(6))
    assert in_saves >= 5
