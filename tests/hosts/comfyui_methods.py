"""Run by ComfyUI's own Python: load an embedding and a ControlNet with its own code, and tell what it said.

    python comfyui_methods.py COMFYUI_DIR EMBEDDING CONTROLNET

Prints one line of JSON: version, vectors (their shapes by key, as the host's own reader gives them), tensors (of the ControlNet
that the host built), said (all that it logged above the level of information, and what was missing or unexpected).
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path


def main() -> None:
    host, embedding, controlnet = sys.argv[1:]
    sys.argv = [sys.argv[0], "--cpu"]
    sys.path.insert(0, host)
    import comfy.options
    comfy.options.enable_args_parsing()
    import comfy.controlnet
    import comfy.sd1_clip
    import comfyui_version

    listener = Listener()
    logging.getLogger().addHandler(listener)
    logging.getLogger().setLevel(logging.DEBUG)
    file = Path(embedding)
    vectors = {}
    for key, width in (("clip_l", 768), ("clip_g", 1280), ("clip_h", 1024)):
        found = comfy.sd1_clip.load_embed(file.stem, str(file.parent), width, key)
        if found is not None and found.shape[-1] == width:
            vectors[key] = list(found.shape)
    loaded = comfy.controlnet.load_controlnet(controlnet)
    tensors = len(loaded.control_model.state_dict())
    print(json.dumps({"version": comfyui_version.__version__, "vectors": vectors, "tensors": tensors, "said": listener.said}))


class Listener(logging.Handler):
    """Keeps what the host warns of."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        told = record.getMessage()
        if record.levelno >= logging.WARNING or "controlnet keys" in told:
            self.said.append(told[:500])


main()
