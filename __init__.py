"""ComfyUI's door: where its page parts are, and the nodes. Nothing else happens here, and nothing heavy is imported.

Other programs never import this file: the package is `aprendiz/`.
"""

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """The extension that ComfyUI asks for."""
    from .nodes.extension import AprendizExtension
    return AprendizExtension()
