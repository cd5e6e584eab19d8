"""Words of our own: rows beside a text encoder's frozen token embedding (Gal et al. 2022).

A word stands for V vectors in each text encoder of a base. Its tokens are numbers from `FIRST` on, which no vocabulary reaches,
so the table itself neither grows nor changes: every row of it stays as it was, bit for bit, and so does the state of every text
without the word. `Base.words` maps spellings to these tokens, for the tokenizer's side (`clip.tokenize`).

Shapes: B batch, T tokens, V vectors of a word, D width of a token, N rows of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from ..families import Base

FIRST = 1 << 20  # the first token that is a word's own
MOST = 75        # vectors: what one chunk of a prompt holds


class WordEmbedding(nn.Module):
    """A frozen table and the rows of words beside it; tokens from `FIRST` on are these rows, in the order in which words came.

    limits: the longest vector of each word, None where any length will do.
    """

    def __init__(self, weight_ND: nn.Parameter, rows: Sequence[nn.Parameter], limits: Sequence[float | None]) -> None:
        super().__init__()
        self.weight = weight_ND  # under its usual name, so that the module's state keeps its keys
        self.rows = nn.ParameterList(rows)
        self.limits = list(limits)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Vectors (B, T, D) of tokens. Rows take part in every batch, so that one without the word has a gradient too: zero."""
        own_BT = ids_BT >= FIRST
        known_BTD = F.embedding(ids_BT.masked_fill(own_BT, 0), self.weight)
        rows_VD = torch.cat([shorten(rows, limit) for rows, limit in zip(self.rows, self.limits)])
        taken_BTD = F.embedding((ids_BT - FIRST).clamp(min=0), rows_VD).to(known_BTD.dtype)
        return torch.where(own_BT[..., None], taken_BTD, known_BTD)


def add_word(base: Base, spellings: Sequence[str], rows: Sequence[nn.Parameter],
             limits: Sequence[float | None] | None = None) -> Callable[[], None]:
    """Give a base a word: its vectors (V, D) for each text encoder, in order, and their longest lengths. Returns what undoes it.

    Words are taken back in the reverse of the order in which they came.
    """
    before: list[Any] = [encoder.get_input_embeddings() for encoder in base.text_encoders]  # type: ignore[operator]
    known = base.words
    first = FIRST + (sum(len(word) for word in before[0].rows) if isinstance(before[0], WordEmbedding) else 0)
    for encoder, table, own, limit in zip(base.text_encoders, before, rows, limits or [None] * len(rows)):
        others = (table.rows, table.limits) if isinstance(table, WordEmbedding) else ((), ())
        exchanged = WordEmbedding(table.weight, [*others[0], own], [*others[1], limit])
        encoder.set_input_embeddings(exchanged)  # type: ignore[operator]
    base.words = {**known, **dict.fromkeys(spellings, tuple(range(first, first + len(rows[0]))))}

    def undo() -> None:
        base.words = known
        for encoder, table in zip(base.text_encoders, before):
            encoder.set_input_embeddings(table)  # type: ignore[operator]

    return undo


def tables(base: Base) -> list[Tensor]:
    """The frozen token embeddings (N, D) of a base's text encoders, in order."""
    return [encoder.get_input_embeddings().weight.detach() for encoder in base.text_encoders]  # type: ignore[operator]


def shorten(rows_VD: Tensor, limit: float | None) -> Tensor:
    """Vectors no longer than `limit`; shorter ones are left as they are, bit for bit."""
    if limit is None:
        return rows_VD
    return rows_VD * (limit / torch.linalg.vector_norm(rows_VD, dim=-1, keepdim=True).clamp(min=limit))


def mean_length(table_ND: Tensor) -> float:
    """Length of a vocabulary's vectors, on average."""
    return float(torch.linalg.vector_norm(table_ND.float(), dim=-1).mean())


def spread(rows_VD: Tensor, count: int) -> Tensor:
    """So many vectors from any number: each repeated evenly, or neighbours averaged where there are too many."""
    have = len(rows_VD)
    if count < have:
        return torch.stack([part.mean(0) for part in torch.tensor_split(rows_VD, count)])
    return rows_VD[torch.arange(count, device=rows_VD.device) * have // count]


def noise(table_ND: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random vectors with the mean and the spread of a vocabulary's own; drawn on the CPU."""
    known = table_ND.float().cpu()
    drawn = torch.randn(count, known.shape[1], generator=generator)
    return (known.mean(0) + known.std(0) * drawn).to(table_ND.device)
