"""The ComfyUI shell: nodes built from `aprendiz/views/comfy_nodes.py`, workers started and followed, routes for the page.

ComfyUI imports this as a sub-package of ours. What touches ComfyUI itself stands in `host.py` and `micro.py`.
"""
