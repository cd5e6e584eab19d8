"""Aprendiz: teach a diffusion model something new from your own pictures."""

__version__ = "0.1.0"
