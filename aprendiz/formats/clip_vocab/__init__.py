"""The vocabulary of CLIP's text encoders (Radford et al. 2021), and the tokenizer built from it, with no network.

`bpe_simple_vocab_16e6.txt.gz` is the file of OpenAI's CLIP as the open_clip package ships it (MIT, see LICENSE beside it): a
heading, then byte-pair merges, most frequent first. The ids that follow from it are those of all hosts: 256 bytes, 256 bytes that
end a word, 48,894 merges, begin (49406) and end of text (49407).
"""

from __future__ import annotations

import gzip
import json
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("bpe_simple_vocab_16e6.txt.gz")
SIZE = 49408
BEGIN, END = "<|startoftext|>", "<|endoftext|>"


@lru_cache(maxsize=1)
def vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token to id, and the merges in order."""
    with gzip.open(FILE, "rt", encoding="utf-8") as file:
        lines = file.read().split("\n")
    merges = [(first, second) for first, second in (line.split() for line in lines[1:SIZE - 2 * 256 - 2 + 1])]
    single = _bytes()
    tokens = [*single, *(f"{one}</w>" for one in single), *("".join(pair) for pair in merges), BEGIN, END]
    return {token: i for i, token in enumerate(tokens)}, merges


def _bytes() -> list[str]:
    """The characters that stand for the 256 bytes: printable ones for themselves, then the others from U+0100 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)]
    rest = [byte for byte in range(256) if byte not in plain]
    return [chr(byte) for byte in plain] + [chr(256 + i) for i in range(len(rest))]


def tokenizer(pad: str = END) -> Any:
    """A `transformers.CLIPTokenizer`. `pad`: end of text for CLIP-L; '!' (id 0) for the OpenCLIP encoders of SD2 and SDXL."""
    from transformers import CLIPTokenizer
    vocab, merges = vocabulary()
    with tempfile.TemporaryDirectory() as folder:
        # Through files, because the constructors of transformers 4 and 5 take different arguments.
        Path(folder, "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
        Path(folder, "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]), encoding="utf-8")
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True, pad_token=pad, model_max_length=77)


@lru_cache(maxsize=1)
def counter() -> Any:
    """A tokenizer to count with, made once."""
    return tokenizer()
