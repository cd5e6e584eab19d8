"""Embedding files in prompts: read, checked against a base before it opens, and lent to it while pictures are drawn.

Each is called by its file's name: bare as in AUTOMATIC1111, or as `embedding:name` as in ComfyUI; `(name:1.2)` weighs it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from . import registry
from .errors import ModelError, SettingsError
from .formats import embedding
from .formats.embedding import Embedding
from .nets import embeddings
from .nets.clip import find_words

if TYPE_CHECKING:
    from .families import Base
    from .settings import BaseSettings

CALLED = re.compile(r"(?<!\w)embedding:([\w.-]*\w)", re.IGNORECASE)


def read_embeddings(files: Iterable[Path]) -> list[Embedding]:
    """Embedding files by the names that call them. Raises ModelError."""
    found: dict[str, Embedding] = {}
    for file in files:
        one = embedding.read(Path(file))
        embedding.check_name(one.name)
        other = found.setdefault(one.name.lower(), one)
        if other is not one:
            raise ModelError("{first} and {second} are both called {name}, so a prompt cannot tell them apart. Rename one.",
                             first=str(other.file), second=str(one.file), name=one.name)
    return list(found.values())


def check_base(found: Sequence[Embedding], settings: BaseSettings) -> None:
    """Raises ModelError where an embedding does not fit a base, from headers alone."""
    from .formats import checkpoint
    from .formats.loading import vocabularies
    if not found:
        return
    source = checkpoint.find(settings)
    family = registry.families()[source.family]
    layout = family.layout()
    if layout is not None:
        widths = [width for width, _ in vocabularies(source, settings, layout)]
        for one in found:
            embedding.fit(one, family, widths)


def check_prompts(found: Sequence[Embedding], texts: Iterable[str]) -> list[str]:
    """The names that no text calls. Raises SettingsError where a text calls one that is not there."""
    texts = list(texts)
    names = {one.name.lower() for one in found}
    for text in texts:
        for called in CALLED.findall(text):
            bare = re.sub(r"\.(safetensors|pt|bin)$", "", called, flags=re.IGNORECASE)
            if not any(bare.lower() == name or re.match(rf"{re.escape(name)}(?!\w)", called.lower()) for name in names):
                raise SettingsError("The prompt calls embedding:{name}, but no such embedding was given. Add --embedding "
                                    "with its "
                                    "file.", name=bare)
    return [one.name for one in found if one not in used(found, texts)]


def used(found: Sequence[Embedding], texts: Iterable[str]) -> list[Embedding]:
    """The embeddings that these texts call."""
    texts = list(texts)
    return [one for one in found if any(tokens for text in texts for _, tokens in find_words(text, {one.name: (0,)}))]


@contextmanager
def with_embeddings(base: Base, found: Sequence[Embedding]) -> Iterator[None]:
    """While pictures are drawn, prompts may call these; afterwards the base knows them no more. Raises ModelError."""
    import torch
    if found and not base.family.embedding_keys:
        raise ModelError("{family} takes no embeddings, so {file} cannot be used with it. Leave it out.",
                         family=base.family.title, file=found[0].file.name)
    tables = embeddings.tables(base) if found else []
    with ExitStack() as stack:
        for one in found:
            fitting = embedding.fit(one, base.family, [table.shape[1] for table in tables])
            rows = [torch.nn.Parameter(row.to(table.device), requires_grad=False) for row, table in zip(fitting, tables)]
            stack.callback(embeddings.add_word(base, [one.name], rows))
        yield
