"""Several processes are one: a batch belongs to the run, so its losses do not depend on how many share it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lessons import losses, pictures

from aprendiz.run import Run


def train(out: Path, data: Path, *launcher: str) -> Run:
    command = [sys.executable, "-m", *launcher, "aprendiz", "train", "lora", "--base", "micro", "--data", str(data), "--out",
               str(out), "--name", "shared",
               "--steps", "20", "--batch-size", "4", "--rank", "4", "--learning-rate", "2e-3", "--rank-dropout", "0.1",
               "--caption-dropout", "0.1",
               "--sampler-steps", "2", "--noise-offset", "0.05"]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8",
                          env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])})
    assert done.returncode == 0, done.stderr
    return Run.open(out / "aprendiz" / "shared")


def test_two_processes_learn_what_one_learns(tmp_path: Path) -> None:
    data = pictures(tmp_path / "red", count=6)
    one = train(tmp_path / "one", data)
    two = train(tmp_path / "two", data, "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no",
                "--dynamo_backend", "no", "-m")
    assert len(losses(one)) == 20
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
