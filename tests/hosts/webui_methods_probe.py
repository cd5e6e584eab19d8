"""Copied into AUTOMATIC1111 as an extension beside sd-webui-controlnet: what they make of an embedding and a ControlNet file.

    GET /aprendiz-probe/embedding?file=     the host's own reading: vectors and their width
    GET /aprendiz-probe/controlnet?file=    sd-webui-controlnet's guess and network: kind, tensors, missing and unexpected ones
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from modules import devices, script_callbacks
from modules.textual_inversion import textual_inversion
from safetensors.torch import load_file


def routes(_: Any, app: Any) -> None:
    """Add the probe's answers to the host's API."""

    @app.get("/aprendiz-probe/embedding")
    def embedding(file: str) -> dict[str, int]:
        made = textual_inversion.create_embedding_from_data(load_file(file), Path(file).stem)
        return {"vectors": made.vectors, "width": made.shape}

    @app.get("/aprendiz-probe/controlnet")
    def controlnet(file: str) -> dict[str, Any]:
        # It was imported while that extension's folder stood first on the path.
        guess = sys.modules["scripts.controlnet_model_guess"]
        answers: list[Any] = []
        load = torch.nn.Module.load_state_dict

        def listening(self: Any, *arguments: Any, **named: Any) -> Any:
            answers.append(load(self, *arguments, **named))
            return answers[-1]

        torch.nn.Module.load_state_dict = listening
        precision, devices.dtype_unet = devices.dtype_unet, torch.float16  # 2.5 GB rather than 5 for SDXL's
        try:
            found = guess.build_model_by_guess(load_file(file), None, file)
        finally:
            devices.dtype_unet = precision
            torch.nn.Module.load_state_dict = load
        return {"kind": found.type.value, "tensors": len(found.model.control_model.state_dict()), "loads": len(answers),
                "missing": [key for answer in answers for key in answer.missing_keys],
                "unexpected": [key for answer in answers for key in answer.unexpected_keys]}


script_callbacks.on_app_started(routes)
