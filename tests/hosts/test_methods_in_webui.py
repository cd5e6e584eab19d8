"""In a real AUTOMATIC1111: our embeddings and ControlNets of the true shapes load without a warning and change the picture.

ControlNets are read by the sd-webui-controlnet extension, which `WEBUI_CONTROLNET_DIR` names beside WEBUI_DIR and WEBUI_PYTHON.
Forge reads them by itself.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import true_checkpoint
import true_methods
import webui_host
from PIL import Image

HERE = Path(__file__).parent
ROWS = HERE.parents[1] / "benchmarks" / "hosts"
TRUE = {"width": 64, "height": 64, "steps": 3}  # random weights draw nothing that more steps would better
WORDS = ("zwx-word", "zwx-old")
EXTENSION = "sd-webui-controlnet"

pytestmark = pytest.mark.webui


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webui_host.Host]:
    """The host with a checkpoint of the true shape, an embedding in either form, and a ControlNet in either layout."""
    data, forge = webui_host.prepare(tmp_path_factory.mktemp("webui")), Path(os.environ["WEBUI_DIR"], "modules_forge").is_dir()
    true_checkpoint.write_sd1(data / "models" / "Stable-diffusion" / "true.safetensors")
    (data / "embeddings").mkdir()
    (data / "models" / "ControlNet").mkdir()
    true_methods.write_embedding("sd1", data / "embeddings" / f"{WORDS[0]}.safetensors")
    true_methods.write_embedding("sd1", data / "embeddings" / f"{WORDS[1]}.pt", as_pt=True)
    for layout in ("diffusers", "original"):
        true_methods.write_controlnet("sd1", data / "models" / "ControlNet" / f"{layout}-canny-sd15.safetensors", layout)
    if not forge:
        if "WEBUI_CONTROLNET_DIR" not in os.environ:
            pytest.fail("this test needs WEBUI_CONTROLNET_DIR to name a checkout of sd-webui-controlnet", pytrace=False)
        shutil.copytree(os.environ["WEBUI_CONTROLNET_DIR"], data / "extensions" / EXTENSION,
                        ignore=shutil.ignore_patterns(".git"))
        shutil.copyfile(HERE / "webui_methods_probe.py", data / "extensions" / "aprendiz-probe" / "scripts" / "aprendiz_too.py")
    running = webui_host.start(Path(os.environ["WEBUI_DIR"]), os.environ["WEBUI_PYTHON"], data, "true")
    try:
        yield running
    finally:
        running.stop()


def keep(host: webui_host.Host, part: str, values: dict[str, Any]) -> None:
    """Write part of the host's row; what another version of it did is forgotten."""
    file = ROWS / f"{host.name.lower()}-methods.json"
    rows = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    here = {"host": host.name, "version": host.version, "commit": host.commit, **host.get("/aprendiz-probe/versions")}
    rows = {name: row for name, row in rows.items() if isinstance(row, dict)} if here.items() <= rows.items() else {}
    file.write_text(json.dumps(rows | {**here, part: values}, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean absolute difference of two pictures, of 255."""
    return float(np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).mean())


def warnings(host: webui_host.Host) -> list[str]:
    """What it said of an embedding or a ControlNet that is no mere news."""
    lines = (host.data / "log.txt").read_text(encoding="utf-8", errors="replace").splitlines()
    about = re.compile(r"embedding|textual inversion|controlnet|control net|state_dict", re.IGNORECASE)
    ill = re.compile(r"warn|error|unable|skipped|missing|unexpected|mismatch|traceback|unknown", re.IGNORECASE)
    # Of packages for preprocessors that are not there it says so, whatever is loaded.
    return [line for line in lines if about.search(line) and ill.search(line) and "preprocessor" not in line.lower()
            and "insightface" not in line.lower()]


def test_an_embedding_of_the_true_shape_is_listed_and_changes_the_picture(host: webui_host.Host) -> None:
    plain = host.draw("true", "a cat", **TRUE)
    listed = host.get("/sdapi/v1/embeddings")  # read when a checkpoint is
    assert [(row["vectors"], row["shape"]) for _, row in sorted(listed["loaded"].items())] == [(true_methods.VECTORS, 768)] * 2
    assert sorted(listed["loaded"]) == sorted(WORDS) and listed["skipped"] == {}
    new, old = (difference(plain, host.draw("true", f"a {word} cat", **TRUE)) for word in WORDS)
    print(f"{new:.3f} {old:.3f}")
    assert new == old > 0.5 and difference(plain, host.draw("true", "a cat", **TRUE)) == 0
    assert warnings(host) == []
    keep(host, "embedding, sd1", {"vectors": true_methods.VECTORS, "skipped": 0, "warnings": 0,
                                  "picture_difference": round(new, 3), "picture_difference_pt": round(old, 3)})


def control(host: webui_host.Host, model: str, lines: Path, weight: float = 1.0) -> dict[str, Any]:
    """The request's part for a ControlNet; its file as the host lists it."""
    listed = host.get("/controlnet/model_list")["model_list"]
    named = next(name for name in listed if name.startswith(model))
    picture = base64.b64encode(lines.read_bytes()).decode()
    unit = {"enabled": True, "module": "None" if host.is_forge else "none", "model": named, "weight": weight, "image": picture,
            "processor_res": 64, "threshold_a": 100, "threshold_b": 200}
    return {"alwayson_scripts": {"controlnet": {"args": [unit]}}}


def test_a_controlnet_of_the_true_shape_changes_the_picture_in_either_layout(host: webui_host.Host, tmp_path: Path) -> None:
    lines = true_methods.write_lines(tmp_path / "lines.png")
    plain = host.draw("true", "a cat", **TRUE)
    named, original, half = (host.draw("true", "a cat", **TRUE, **control(host, *what)) for what in (
        ("diffusers", lines), ("original", lines), ("diffusers", lines, 0.5)))
    changes = [difference(plain, picture) for picture in (named, original, half)]
    print(changes)
    assert changes[0] == changes[1] > 0.5 and difference(named, original) == 0 and difference(named, half) > 0
    assert warnings(host) == []
    keep(host, "controlnet, sd1", {"warnings": 0, "picture_difference": round(changes[0], 3),
                                   "picture_difference_original_layout": round(changes[1], 3),
                                   "picture_difference_half_weight": round(changes[2], 3)})


@pytest.mark.parametrize("layout", ["diffusers", "original"])
@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_the_extension_builds_our_files_whole(host: webui_host.Host, family: str, layout: str, tmp_path: Path) -> None:
    if host.is_forge:
        pytest.fail("this asks sd-webui-controlnet, which Forge has not", pytrace=False)
    word = true_methods.write_embedding(family, tmp_path / f"{family}.safetensors")
    net = true_methods.write_controlnet(family, tmp_path / "control-canny.safetensors", layout)
    read = host.get("/aprendiz-probe/embedding", file=word)
    assert read == {"vectors": true_methods.VECTORS, "width": sum(true_methods.WIDTHS[family].values())}
    answer = host.get("/aprendiz-probe/controlnet", file=net)
    assert answer["missing"] == answer["unexpected"] == [] and answer["loads"] >= 1
    assert answer["tensors"] == true_methods.TENSORS[family]
    keep(host, f"files, {family}, {layout}", {"embedding": read, "kind": answer["kind"], "tensors": answer["tensors"],
                                              "missing": 0, "unexpected": 0})
