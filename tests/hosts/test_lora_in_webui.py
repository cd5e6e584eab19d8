"""In a real AUTOMATIC1111 or Forge: our LoRA files load whole, patch the weights to W + up down alpha / rank, and are shown.

`WEBUI_DIR` is the host's folder, `WEBUI_PYTHON` its interpreter. Each run writes the host's row into `benchmarks/hosts/`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import true_checkpoint
import true_lora
import webui_host
from PIL import Image
from safetensors.torch import load_file, save_file

from aprendiz import registry
from aprendiz.formats import kohya
from aprendiz.micro.pictures import write_pictures
from aprendiz.micro.widen import widen_lora, write_micro_checkpoint
from aprendiz.nets import evaluator

ROWS = Path(__file__).parents[2] / "benchmarks" / "hosts"
STAR, FISH = "a large red star on a white background", "a large red fish on a white background"
MICRO = {"width": 128, "height": 128}
TRUE = {"width": 64, "height": 64, "steps": 3}  # random weights draw nothing that more steps would better

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def fish(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of micro, trained by the command line on drawn fish, with what lies beside it."""
    folder = tmp_path_factory.mktemp("fish")
    write_pictures(folder / "pictures", "fish")
    command = [sys.executable, "-m", "aprendiz", "train", "lora", "--base", "micro", "--data", str(folder / "pictures"),
               "--trigger", "fish", "--name", "fish", "--out", str(folder), "--rank", "8", "--targets", "all",
               "--train-text-encoder", "--text-encoder-learning-rate", "5e-4", "--learning-rate", "3e-3", "--steps", "200",
               "--batch-size", "6", "--save-every-steps", "1000", "--sample-every-steps", "1000", "--sample-prompts", FISH]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return next(folder.rglob("fish.safetensors"))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webui_host.Host]:
    """The host, with a checkpoint of the true shape."""
    data = webui_host.prepare(tmp_path_factory.mktemp("webui"))
    true_checkpoint.write_sd1(data / "models" / "Stable-diffusion" / "true.safetensors")
    running = webui_host.start(Path(os.environ["WEBUI_DIR"]), os.environ["WEBUI_PYTHON"], data, "true")
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def micro(host: webui_host.Host, fish: Path) -> webui_host.Host:
    """The host with micro as well, and with the fish, widened as micro's checkpoint is, under its own name."""
    write_micro_checkpoint(host.data / "models" / "Stable-diffusion" / "micro.safetensors")
    weights, metadata = kohya.read(fish)
    assert {weight.part for weight in weights} == {"network", "text_encoder_1"}
    loras = host.data / "models" / "Lora"
    kohya.write(loras / "fish.safetensors", widen_lora(weights), registry.families()["sd1"], metadata)
    for beside in (".json", ".png"):
        shutil.copyfile(fish.with_suffix(beside), loras / f"fish{beside}")
    host.post("/sdapi/v1/refresh-loras", {})
    host.post("/sdapi/v1/refresh-checkpoints", {})
    return host


def keep(host: webui_host.Host, part: str, values: dict[str, Any]) -> None:
    """Write part of the host's row; what another version of it did is forgotten."""
    file = ROWS / f"{host.name.lower()}-lora.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    here = {"host": host.name, "version": host.version, "commit": host.commit, **host.get("/aprendiz-probe/versions")}
    rows = {name: row for name, row in rows.items() if isinstance(row, dict)} if here.items() <= rows.items() else {}
    rows |= {**here, part: values}
    file.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, of 255."""
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


def install(host: webui_host.Host, file: Path) -> None:
    """Put a LoRA where the host looks for them."""
    shutil.copyfile(file, host.data / "models" / "Lora" / file.name)
    host.post("/sdapi/v1/refresh-loras", {})


def check_weights(answer: dict[str, Any], lora: true_lora.TrueLora, modules: int) -> dict[str, Any]:
    """Every module's weight, and no other, is W + up down alpha / rank; the row that says so."""
    assert answer["missing"] == answer["others_changed"] == []
    assert answer["modules"] == lora.modules == modules
    assert answer["largest_weight_error"] <= 1e-6 < 1e-4 < answer["least_change"]
    return {"modules": modules, "matched": answer["modules"], "largest_weight_error": answer["largest_weight_error"]}


def test_a_lora_of_the_true_shape_loads_whole_patches_every_weight_exactly_and_changes_the_picture(
        host: webui_host.Host, tmp_path: Path) -> None:
    lora = true_lora.write("sd1", tmp_path)
    install(host, lora.file)
    without = host.draw("true", "a cat", **TRUE)
    with_it = host.draw("true", "a cat <lora:sd1:1>", **TRUE)
    answer = host.get("/aprendiz-probe/loaded", checkpoint=host.data / "models" / "Stable-diffusion" / "true.safetensors",
                      plain=lora.plain, keys=true_checkpoint.write_keys("sd1", lora))
    row = check_weights(answer, lora, 350)
    unmatched = host.get("/aprendiz-probe/unmatched", name="sd1")
    assert unmatched == []
    assert difference(without, with_it) > 1
    assert difference(without, host.draw("true", "a cat", **TRUE)) == 0
    keep(host, "sd1", {**row, "unmatched": len(unmatched), "picture_difference": round(difference(without, with_it), 3)})


def test_a_tensor_that_belongs_nowhere_is_told(host: webui_host.Host, tmp_path: Path) -> None:
    file = true_lora.write("sd1", tmp_path).file
    save_file({**load_file(file), "lora_unet_nowhere.alpha": torch.tensor(1.0)}, tmp_path / "odd.safetensors")
    install(host, tmp_path / "odd.safetensors")
    told = host.get("/aprendiz-probe/unmatched", name="odd")
    assert len(told) == 1 and "lora_unet_nowhere.alpha" in told[0]


def test_an_sdxl_lora_of_the_true_shape_loads_whole_and_patches_every_weight_exactly(
        host: webui_host.Host, tmp_path: Path) -> None:
    lora = true_lora.write("sdxl", tmp_path)
    install(host, lora.file)
    answer = host.get("/aprendiz-probe/sdxl", name="sdxl", plain=lora.plain, keys=true_checkpoint.write_keys("sdxl", lora),
                      shapes=true_checkpoint.write_shapes("sdxl", tmp_path / "shapes.json"))
    keep(host, "sdxl", {**check_weights(answer, lora, 1052), "unmatched": len(answer["unmatched"])})
    assert answer["unmatched"] == []


def test_the_lora_page_shows_trigger_base_and_preview_and_the_alias_is_the_files_name(micro: webui_host.Host) -> None:
    host = micro
    listed = {lora["name"]: lora for lora in host.get("/sdapi/v1/loras")}
    assert listed["fish"]["alias"] == "fish"
    assert listed["fish"]["metadata"]["ss_base_model_version"] == "sd_v1"
    assert listed["fish"]["metadata"]["modelspec.architecture"] == "stable-diffusion-v1/lora"
    card = host.get("/aprendiz-probe/card", name="fish")
    assert card["user_metadata"]["activation text"] == "fish"
    assert card["prompt"] == '"<lora:fish:" + 1.0 + ">" + " fish"'
    assert card.get("sd_version", card.get("sd_version_str")) in ("SD1", "SdVersion.SD1")
    assert "fish.png" in card["preview"] and "fish.png" in card["html"]
    assert "made with Aprendiz" in card["description"] and "metadata-button" in card["html"]
    keep(host, "page", {"alias": listed["fish"]["alias"], "trigger": card["user_metadata"]["activation text"], "base": "SD1",
                        "preview": "fish.png"})


def test_micro_opens_in_automatic1111_and_draws_and_a_lora_of_it_draws_what_it_learned(micro: webui_host.Host) -> None:
    host = micro
    if host.is_forge:  # it takes the shapes of the published models alone, and says so
        with pytest.raises(webui_host.HostError, match="Failed to recognize model type"):
            host.draw("micro", STAR, **MICRO)
        keep(host, "micro", {"opens": False, "answer": "Failed to recognize model type!"})
        return
    star, without = host.draw("micro", STAR, **MICRO), host.draw("micro", FISH, **MICRO)
    with_it = host.draw("micro", f"{FISH} <lora:fish:1>", **MICRO)
    seen = [verdict.first[:2] for verdict in evaluator.judge([star, without, with_it])]
    assert seen[0] == ("star", "red")
    assert seen[1][0] != "fish"
    assert seen[2] == ("fish", "red")
    unmatched = host.get("/aprendiz-probe/unmatched", name="fish")
    assert unmatched == []
    keep(host, "micro", {"opens": True, "drawn": seen[0][0], "without_lora": seen[1][0], "with_lora": seen[2][0],
                         "unmatched": len(unmatched), "picture_difference": round(difference(without, with_it), 3)})
