"""Gradient checkpointing (Chen et al. 2016): what a piece of the network computed is forgotten, and computed again when needed.

Pieces are the layers inside a family's blocks where these hold a list of them (the transformer layers of an attention block),
else the blocks themselves. The result is the same: nothing in a frozen network draws random numbers, and what a method has drawn
stands until the next step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def pieces(blocks: Sequence[nn.Module]) -> list[nn.Module]:
    """The smallest parts of the blocks that are worth forgetting or bringing on their own, in the order in which they run."""
    found: list[nn.Module] = []
    for block in blocks:
        lists = [child for child in block.children() if isinstance(child, nn.ModuleList)]
        # A residual block's or a sampler's layers are small; an attention block may hold ten transformer layers.
        inner = [layer for layer in lists[0] if any(layer.children())] if len(lists) == 1 else []
        found += inner or [block]
    return found


def recompute(chosen: Iterable[nn.Module]) -> None:
    """Let these pieces forget. One that forgets already is left as it is."""
    for piece in chosen:
        if not isinstance(piece.forward, Again):
            piece.forward = Again(piece.forward)


def keep(chosen: Iterable[nn.Module]) -> None:
    """Undo `recompute`."""
    for piece in chosen:
        if isinstance(piece.forward, Again):
            before = piece.forward.forward
            del piece.forward
            if piece.forward != before:  # someone else's stood there
                piece.forward = before  # type: ignore[method-assign]


class Again:
    """A module's `forward` whose activations are not kept."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*inputs, **named)
        # Without arguments of its own it asks nothing of their device, so that it can be traced on the meta device too.
        return checkpoint(lambda: self.forward(*inputs, **named), use_reentrant=False, preserve_rng_state=False)
