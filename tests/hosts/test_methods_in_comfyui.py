"""In a real ComfyUI: our files of the true shapes load without a warning and change the picture."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import true_checkpoint
import true_lora
import true_methods
from PIL import Image
from test_comfyui import Comfy

HERE = Path(__file__).parent
ROW = HERE.parents[1] / "benchmarks" / "hosts" / "comfyui-methods.json"
KEYS = {"sd1": ["clip_l"], "sdxl": ["clip_l", "clip_g"]}

pytestmark = pytest.mark.comfyui


def keep(version: str, part: str, values: dict[str, Any]) -> None:
    """Write part of the host's row; what another version of it did is forgotten."""
    rows = json.loads(ROW.read_text(encoding="utf-8")) if ROW.is_file() else {}
    rows = rows if rows.get("version") == version else {}
    rows |= {"host": "ComfyUI", "version": version, part: values}
    ROW.write_text(json.dumps(rows, indent=2, sort_keys=True) + "\n", encoding="utf-8")


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_files_of_the_true_shape_load_whole_and_without_a_warning(family: str, layout: str, tmp_path: Path) -> None:
    word = true_methods.write_embedding(family, tmp_path / "zwx-word.safetensors")
    net = true_methods.write_controlnet(family, tmp_path / "control-canny.safetensors", layout)
    command = [os.environ["COMFYUI_PYTHON"], str(HERE / "comfyui_methods.py"), os.environ["COMFYUI_DIR"], str(word), str(net)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    # It tells unexpected tensors at the level of debugging, missing ones as a warning.
    assert answer["said"] == []
    assert answer["tensors"] == true_methods.TENSORS[family]
    widths = true_methods.WIDTHS[family].values()
    assert answer["vectors"] == {key: [true_methods.VECTORS, width] for key, width in zip(KEYS[family], widths)}
    keep(answer["version"], f"{family}, {layout}", {"controlnet_tensors": answer["tensors"], "warnings": 0,
                                                    "vectors": answer["vectors"]})


@pytest.fixture(scope="module")
def comfy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The host with a Stable Diffusion 1.5 of the true shape, an embedding in either form, a ControlNet, a LoRA."""
    base = tmp_path_factory.mktemp("comfyui")
    kinds = ("checkpoints", "embeddings", "controlnet", "loras")
    for name in ("custom_nodes", *(f"models/{kind}" for kind in kinds), "input", "output"):
        (base / name).mkdir(parents=True)
    true_checkpoint.write_sd1(base / "models" / "checkpoints" / "true.safetensors")
    true_methods.write_embedding("sd1", base / "models" / "embeddings" / "zwx-word.safetensors")
    true_methods.write_embedding("sd1", base / "models" / "embeddings" / "zwx-old.pt", as_pt=True)
    true_methods.write_controlnet("sd1", base / "models" / "controlnet" / "control-canny.safetensors")
    true_lora.write("sd1", base / "models" / "loras")
    true_methods.write_lines(base / "input" / "lines.png")
    host = Comfy(base)
    try:
        host.wait_until_up()
        yield host
    finally:
        host.close()


def drawn(host: Comfy, prompt: str, control: float | None = None, lora: float | None = None) -> np.ndarray:
    """A picture by stock nodes. control, lora: the strength of the ControlNet and of the LoRA, None without one."""
    nodes: dict[str, Any] = {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "true.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": prompt}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"clip": ["1", 1], "text": ""}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": {
            "model": ["1", 0], "positive": ["2", 0], "negative": ["3", 0], "latent_image": ["4", 0], "seed": 1, "steps": 3,
            "cfg": 5.0, "sampler_name": "ddim", "scheduler": "ddim_uniform", "denoise": 1.0}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "picture"}}}
    if lora is not None:
        nodes["11"] = {"class_type": "LoraLoader", "inputs": {"model": ["1", 0], "clip": ["1", 1], "lora_name": "sd1.safetensors",
                                                              "strength_model": lora, "strength_clip": lora}}
        nodes["5"]["inputs"]["model"] = ["11", 0]
        nodes["2"]["inputs"]["clip"] = nodes["3"]["inputs"]["clip"] = ["11", 1]
    if control is not None:
        nodes["8"] = {"class_type": "ControlNetLoader", "inputs": {"control_net_name": "control-canny.safetensors"}}
        nodes["9"] = {"class_type": "LoadImage", "inputs": {"image": "lines.png"}}
        nodes["10"] = {"class_type": "ControlNetApplyAdvanced", "inputs": {
            "positive": ["2", 0], "negative": ["3", 0], "control_net": ["8", 0], "image": ["9", 0], "strength": control,
            "start_percent": 0.0, "end_percent": 1.0}}
        nodes["5"]["inputs"] |= {"positive": ["10", 0], "negative": ["10", 1]}
    shown = host.run(nodes)["7"]["images"][0]
    with Image.open(host.base / "output" / shown["subfolder"] / shown["filename"]) as picture:
        return np.asarray(picture.convert("RGB"), np.float32)


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean absolute difference of two pictures, of 255."""
    return float(np.abs(one - other).mean())


def warnings(host: Comfy) -> list[str]:
    """What it said of an embedding, a ControlNet, a LoRA or keys."""
    words = host.log.read_text(encoding="utf-8", errors="replace").splitlines()
    signs = ("warning", "missing", "error", "leftover", "ignor", "not loaded")
    return [line for line in words if any(sign in line.lower() for sign in signs)
            and any(thing in line.lower() for thing in ("embedding", "control", "keys", "lora"))]


def test_an_embedding_a_controlnet_and_a_lora_of_the_true_shape_change_the_picture(comfy: Comfy) -> None:
    plain = drawn(comfy, "a cat")
    lora = difference(plain, drawn(comfy, "a cat", lora=1.0))
    assert lora > 0.5 and difference(plain, drawn(comfy, "a cat", lora=0.0)) == 0
    word = difference(plain, drawn(comfy, "a embedding:zwx-word cat"))
    old = difference(plain, drawn(comfy, "a embedding:zwx-old cat"))
    control, half = (difference(plain, drawn(comfy, "a cat", strength)) for strength in (1.0, 0.5))
    print(f"{word:.3f} {old:.3f} {control:.3f} {half:.3f}")
    assert difference(plain, drawn(comfy, "a cat", 0.0)) == 0
    assert word > 0.5 and control > 0.5 and half != control
    assert old == word  # the same vectors in both forms
    assert warnings(comfy) == []
    version = comfy.ask("/system_stats")["system"]["comfyui_version"]
    keep(version, "pictures, sd1", {"embedding": round(word, 3), "embedding_pt": round(old, 3), "controlnet": round(control, 3),
                                    "controlnet_half_strength": round(half, 3), "lora": round(lora, 3), "warnings": 0})
