"""Installing `requirements.txt` into a ComfyUI's environment changes the version of no package that was there.

Nothing is installed: pip tells what it would do (`--dry-run --report`), in an environment whose packages are there by their
metadata alone. Needs a package index.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.comfyui
# What a ComfyUI of a time holds of what we use; all else that these need is taken as pip finds it.
OCTOBER_2025 = ["transformers==4.57.1", "huggingface_hub==0.36.0", "tokenizers==0.22.1", "safetensors==0.6.2", "numpy==2.3.4",
                "pillow==12.0.0", "pyyaml==6.0.3", "psutil==7.1.2", "filelock==3.20.0", "fsspec==2025.9.0", "tqdm==4.67.1",
                "aiohttp==3.13.1", "scipy==1.16.2", "einops==0.8.1", "requests==2.32.5", "packaging==25.0", "regex==2025.9.18"]
TODAY = ["transformers", "huggingface_hub", "tokenizers", "safetensors", "numpy", "pillow", "pyyaml", "psutil", "aiohttp",
         "scipy", "einops", "requests"]
TORCH = {"2025": "2.9.0", "today": "2.13.0"}


def pip(python: Path, *arguments: str) -> dict[str, Any]:
    """What pip would install into an environment, by its report."""
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run([sys.executable, "-m", "pip", "--python", str(python), "install", "--dry-run", "--quiet", "--no-input",
                           "--report", "-", *arguments], capture_output=True, text=True, encoding="utf-8", env=environment,
                          check=False)
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def plain(name: str) -> str:
    """A package's name as indexes compare them."""
    return name.lower().replace("_", "-").replace(".", "-")


def environment(folder: Path, wanted: list[str], torch: str) -> tuple[Path, dict[str, str]]:
    """An environment with these packages and what they need, each there by its metadata: its Python, and their versions."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    packages = Path(subprocess.run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
                                   capture_output=True, text=True, check=True).stdout.strip())
    found = [one["metadata"] for one in pip(python, *wanted)["install"]]
    found.append({"name": "torch", "version": torch, "requires_dist": []})
    for told in found:
        place = packages / f"{told['name'].replace('-', '_')}-{told['version']}.dist-info"
        place.mkdir()
        lines = [f"Requires-Dist: {one}" for one in told.get("requires_dist", [])]
        lines += [f"Provides-Extra: {one}" for one in told.get("provides_extra", [])]
        head = ["Metadata-Version: 2.1", f"Name: {told['name']}", f"Version: {told['version']}", *lines]
        (place / "METADATA").write_text("\n".join(head) + "\n", encoding="utf-8")
        (place / "RECORD").write_text("", encoding="utf-8")
        (place / "INSTALLER").write_text("pip\n", encoding="utf-8")
    return python, {plain(told["name"]): told["version"] for told in found}


@pytest.mark.parametrize(("time", "wanted"), [("2025", OCTOBER_2025), ("today", TODAY)])
def test_no_package_that_was_there_changes_its_version(time: str, wanted: list[str], tmp_path: Path) -> None:
    python, there = environment(tmp_path / "environment", wanted, TORCH[time])
    would = {plain(one["metadata"]["name"]): one["metadata"]["version"]
             for one in pip(python, "-r", str(ROOT / "requirements.txt"))["install"]}
    assert {name: (there[name], version) for name, version in would.items() if name in there} == {}, would
    assert {"diffusers", "peft", "accelerate"} <= set(would)
