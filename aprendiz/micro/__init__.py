"""`micro`, the embedded base: a small true latent diffusion model, the scenes it was trained on, and what made it.

    base/                     the weights, a diffusers folder that the stock StableDiffusionPipeline opens
    evaluator.safetensors     the network that names what a picture shows (`aprendiz/nets/evaluator.py`)
    shapes, scenes, textures  pictures with captions and labels, drawn from a seed
    pictures                  folders of captioned pictures of what the base has never seen, and fixed prompts to score
    measure                   how often prompts are followed
    widen                     the same functions with 32 groups, as other programs hard-code them
    build                     makes all of the weights again: `python -m aprendiz.micro.build --out DIR`
"""
