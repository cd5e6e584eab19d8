"""Time from command to first step: `python -m aprendiz train lora --base micro` in a new process, its caches warm."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import bases
from .turns import ROOT


def measure(folder: Path, threads: int) -> dict[str, Any]:
    """Seconds by the clock and of the processor until the first step is told, of the better of two runs after a first one."""
    runs = [first_step(folder, threads, f"startup-{number}") for number in range(3)]
    best = min(runs[1:], key=lambda run: run["seconds"])
    return {**best, "threads": threads}


def first_step(folder: Path, threads: int, name: str) -> dict[str, float]:
    """One run of one step."""
    pictures = bases.write_pictures(folder / "pictures-128", 128)
    command = [sys.executable, "-m", "aprendiz", "train", "lora", "--base", "micro", "--data", str(pictures), "--steps", "1",
               "--device", "cpu", "--name", name, "--again", "--out", str(folder / "out"), "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1", "APRENDIZ_HOME": str(folder / "home")}
    began = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, encoding="utf-8")
    assert process.stdout
    for line in process.stdout:
        if json.loads(line)["event"] == "step":
            told = {"seconds": round(time.perf_counter() - began, 2), "processor_seconds": _processor(process.pid)}
            break
    else:
        raise RuntimeError(f"no step was told; the command ended with {process.wait()}")
    process.stdout.read()
    process.wait()
    return told


def _processor(process: int) -> float:
    """Seconds of the processor that a process has used."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:  # a system that tells it elsewhere
        return float("nan")
    return round((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK"), 2)
