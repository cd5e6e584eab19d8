"""A real AUTOMATIC1111 or Forge, started as its users start it, on the CPU and in float32, and asked through its HTTP API.

Nothing is written into the host's own folder: models, LoRAs and settings lie in a folder of the test's (`--data-dir`). The probe
is an extension there, and so are we where the page is wanted. CLIP's tokenizer, which AUTOMATIC1111 would download, comes from
our package.
"""

from __future__ import annotations

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from aprendiz.formats import clip_vocab

HERE = Path(__file__).parent
START_SECONDS, ANSWER_SECONDS = 1800, 1800
ROOT = HERE.parents[1]
EXTENSION = ("aprendiz", "scripts", "javascript", "localizations", "style.css", "install.py")  # what we are, as an extension
COMMON = ["--api", "--skip-prepare-environment", "--skip-torch-cuda-test", "--no-hashing",
          "--server-name", "127.0.0.1"]
A1111 = ["--use-cpu", "all", "--no-half"]
FORGE = ["--always-cpu", "--all-in-fp32", "--clip-in-fp32"]


@dataclass
class Host:
    """A running host. folder: its program. data: its models and settings."""

    folder: Path
    data: Path
    port: int
    process: subprocess.Popen[bytes]
    checkpoint: str = ""

    @property
    def is_forge(self) -> bool:
        """Forge or reForge."""
        return (self.folder / "modules_forge").is_dir()

    @property
    def name(self) -> str:
        if not self.is_forge:
            return "AUTOMATIC1111"
        return "reForge" if (self.folder / "ldm_patched").is_dir() else "Forge"

    @property
    def version(self) -> str:
        """As the host writes it itself."""
        if self.is_forge:
            return re.findall(r"'(.+)'", (self.folder / "modules_forge" / "forge_version.py").read_text(encoding="utf-8"))[0]
        return re.findall(r"^## (\S+)", (self.folder / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)[0]

    @property
    def commit(self) -> str | None:
        """Of the host's checkout, None where it is none."""
        if not (self.folder / ".git").exists():
            return None
        command = ["git", "-C", str(self.folder), "rev-parse", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip()

    def get(self, path: str, **query: str | Path) -> Any:
        """Ask."""
        query_text = urllib.parse.urlencode({name: str(value) for name, value in query.items()})
        return self._ask(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}?{query_text}"))

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Tell."""
        return self._ask(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", json.dumps(body).encode(),
                                                {"Content-Type": "application/json"}))

    def _ask(self, request: urllib.request.Request) -> Any:
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
                return json.loads(answer.read())
        except urllib.error.HTTPError as error:
            raise HostError(error.read().decode("utf-8", "replace"), self.log()) from error

    def draw(self, checkpoint: str, prompt: str, **settings: Any) -> Image.Image:
        """One picture with a checkpoint of its models folder; settings as its API names them."""
        if checkpoint != self.checkpoint:
            self.post("/sdapi/v1/options", {"sd_model_checkpoint": f"{checkpoint}.safetensors"})
            self.checkpoint = checkpoint
        request = {"prompt": prompt, "seed": 1, "cfg_scale": 5, "sampler_name": "DDIM", "steps": 20, **settings}
        answer = self.post("/sdapi/v1/txt2img", request)
        return Image.open(io.BytesIO(base64.b64decode(answer["images"][0]))).convert("RGB")

    def log(self) -> str:
        """What it wrote, the end of it."""
        return (self.data / "log.txt").read_text(encoding="utf-8", errors="replace")[-6000:]

    def starts(self) -> int:
        """How often it has come up, *Reload UI* counted. A question between its page and its API ends AUTOMATIC1111."""
        return (self.data / "log.txt").read_text(encoding="utf-8", errors="replace").count("Startup time")

    def stop(self) -> None:
        """End it, and wait for that."""
        self.process.terminate()
        try:
            self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class HostError(Exception):
    """What the host answered, and the end of its log."""


def prepare(data: Path) -> Path:
    """Make a host's folder for models and settings, with the probe as an extension."""
    scripts, clip = data / "extensions" / "aprendiz-probe" / "scripts", data / "openai" / "clip-vit-large-patch14"
    for folder in (data / "models" / "Stable-diffusion", data / "models" / "Lora", scripts, clip):
        folder.mkdir(parents=True)
    shutil.copyfile(HERE / "webui_probe.py", scripts / "aprendiz_probe.py")
    write_clip(clip)
    return data


def add_ourselves(data: Path) -> Path:
    """Install this extension."""
    folder = data / "extensions" / "aprendiz"
    for name in EXTENSION:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        elif (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, folder / name)
    add_clip(data)
    return folder


def add_clip(data: Path) -> None:
    """Let the host find CLIP wherever it runs."""
    cached, snapshot = data / "hub" / "hub" / "models--openai--clip-vit-large-patch14", "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(snapshot, encoding="utf-8")
    shutil.copytree(data / "openai" / "clip-vit-large-patch14", cached / "snapshots" / snapshot)


def write_clip(folder: Path) -> None:
    """What AUTOMATIC1111 reads of openai/clip-vit-large-patch14: tokenizer and configuration, found in its working folder."""
    vocabulary, merges = clip_vocab.vocabulary()
    end = clip_vocab.END
    contents = {
        "vocab.json": json.dumps(vocabulary),
        "merges.txt": "\n".join(["#version: 0.2", *map(" ".join, merges)]),
        "tokenizer_config.json": json.dumps({"model_max_length": 77, "tokenizer_class": "CLIPTokenizer", "pad_token": end,
                                             "unk_token": end, "bos_token": clip_vocab.BEGIN, "eos_token": end}),
        "config.json": json.dumps({"model_type": "clip_text_model", "hidden_size": 768, "intermediate_size": 3072,
                                   "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_act": "quick_gelu",
                                   "max_position_embeddings": 77, "vocab_size": clip_vocab.SIZE, "projection_dim": 768})}
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")


def start(folder: Path, python: str, data: Path, checkpoint: str, page: bool = False, arguments: Sequence[str] = ()) -> Host:
    """Start a host with one of the checkpoints in its models folder, and wait until it answers.

    page: with its page, in its own folder as its users do, and our worker with the Python of the tests. arguments: more of them.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ours = ("PYTHON", "VIRTUAL_ENV", "APRENDIZ")  # none of the host's business: it has its own packages
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    surroundings |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": str(data / "hub"), "COMMANDLINE_ARGS": "",
                     "PYTHONUNBUFFERED": "1"}  # its log is read while it runs
    if page:
        surroundings |= {"APRENDIZ_PYTHON": sys.executable, "APRENDIZ_HOME": str(data / "user"), "APRENDIZ_LANGUAGE": "en"}
    own = FORGE if (folder / "modules_forge").is_dir() else A1111
    # Forge serves files of its own folder only where that is its data folder too.
    shown = ["--gradio-allowed-path", str(folder)] if page else ["--nowebui"]
    command = [python, str(folder / "launch.py"), *COMMON, *shown, *own, *arguments, "--data-dir", str(data), "--port", str(port),
               "--ckpt", str(data / "models" / "Stable-diffusion" / f"{checkpoint}.safetensors")]
    with (data / "log.txt").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder if page else data, env=surroundings, stdout=log, stderr=subprocess.STDOUT)
    host = Host(folder, data, port, process, checkpoint)
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise HostError("the host ended while it started", host.log())
        try:
            if host.starts():
                host.get("/aprendiz-probe/versions")
                return host
        except (urllib.error.URLError, ConnectionError, HostError, ValueError):  # the page answers before the probe does
            pass
        time.sleep(1)
    host.stop()
    raise HostError("the host did not start in time", host.log())
