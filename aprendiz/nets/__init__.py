"""Torch modules of our own, without training knowledge."""
