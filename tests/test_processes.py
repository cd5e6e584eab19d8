"""Several processes are one: a batch belongs to the run, so its losses do not depend on how many share it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
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


def pause_once(folder: Path) -> None:
    """Pause a run, as soon as it is there, before its first step or after some; let it go on once it stands."""
    while not (folder / "job.json").is_file():
        time.sleep(0.05)
    run = Run(folder)
    run.tell("pause")
    while run.state != "paused":
        time.sleep(0.05)
    run.tell("resume")


def test_two_processes_learn_what_one_learns_and_pause_together(tmp_path: Path) -> None:
    data = pictures(tmp_path / "red", count=6)
    one = train(tmp_path / "one", data)
    threading.Thread(target=pause_once, args=(tmp_path / "two" / "aprendiz" / "shared",), daemon=True).start()
    two = train(tmp_path / "two", data, "accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no",
                "--dynamo_backend", "no", "-m")
    assert len(losses(one)) == 20
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert [event["event"] for event in two.events()].count("paused") == 1
