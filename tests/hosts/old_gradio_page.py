"""Serves the page on whatever Gradio this Python has, as hosts do; the worker is that of `APRENDIZ_PYTHON`.

    python old_gradio_page.py PORT OUTPUT FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import gradio as gr
import uvicorn
from fastapi import FastAPI

sys.path.append(str(Path(__file__).parents[2]))

from aprendiz.views.desk import Desk, at_once
from aprendiz.views.gradio import build
from aprendiz.views.routes import Routes, mount


def main(port: int, output: Path, folder: Path) -> None:
    """Serve until the end."""
    desk = Desk(lambda: output, at_once([folder]))
    with gr.Blocks(title="Aprendiz", analytics_enabled=False) as blocks:
        build(gr)
    app = gr.mount_gradio_app(FastAPI(), blocks.queue(), path="/")
    mount(app, Routes(desk))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=2)


main(int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
