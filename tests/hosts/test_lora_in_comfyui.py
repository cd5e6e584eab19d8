"""In a real ComfyUI: our LoRA files of the true shapes load whole and patch the weights to W + up down alpha / rank."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import true_lora

HERE = Path(__file__).parent
ROW = HERE.parents[1] / "benchmarks" / "hosts" / "comfyui-lora.json"


def ask_comfyui(family: str, lora: true_lora.TrueLora) -> dict[str, Any]:
    """What ComfyUI made of a file, in its own interpreter."""
    command = [os.environ["COMFYUI_PYTHON"], str(HERE / "comfyui_lora.py"), os.environ["COMFYUI_DIR"], family, str(lora.file),
               str(lora.plain)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def keep(family: str, answer: dict[str, Any]) -> None:
    """Write the host's row."""
    rows = json.loads(ROW.read_text(encoding="utf-8")) if ROW.is_file() else {}
    rows = {"host": "ComfyUI", "version": answer["version"], "families": rows.get("families", {})}
    rows["families"][family] = {"modules": answer["modules"], "not_loaded": len(answer["not_loaded"]),
                                "largest_weight_error": answer["largest_weight_error"]}
    ROW.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@pytest.mark.comfyui
@pytest.mark.parametrize(("family", "modules"), [("sd1", 350), ("sdxl", 1052)])
def test_a_lora_of_the_true_shape_loads_whole_and_patches_every_weight_exactly(family: str, modules: int, tmp_path: Path) -> None:
    lora = true_lora.write(family, tmp_path)
    answer = ask_comfyui(family, lora)
    assert answer["not_loaded"] == []
    assert answer["modules"] == lora.modules == modules
    assert answer["right_weights"]
    assert answer["largest_weight_error"] <= 1e-6 < 1e-4 < answer["least_change"]
    keep(family, answer)
