"""The tokenizer: CLIP's own byte-pair encoding, less the merges that these words do not need.

Every row is a real CLIP token; `clip_token_ids.json` holds its number in CLIP's vocabulary (ascending), so that the text
encoder can be given all 49,408 rows (`widen.full_vocabulary`) and hosts may use their own tokenizer.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..formats import clip_vocab
from .scenes import vocabulary as caption_words

WORD_END = "</w>"
MAX_TOKENS = 77

Merge = tuple[str, str]

# Words that people may teach it or ask it for, beside those of the captions; words that CLIP splits are left out.
MORE_WORDS = """
a style painting sketch with and in the of by to on at for neon glowing glow fish flower robot moon sun shape thing object
big little huge giant two one three no text dark light bright pale deep beautiful cute pretty best quality masterpiece
detailed highly blurry low high bad worst ugly colorful simple top bottom left right corner center middle inside holding near
next between behind front sks xyz zwx cat dog bird person girl boy man woman portrait landscape photo grey aqua teal violet
golden gold silver smiley smile happy sad cartoon pixel art vintage retro minimal abstract geometric pattern texture dot dots
lines line spotted checked plaid tiny large medium small round pointed sharp soft smooth rough car boat ship plane cup hat
apple banana leaf cloud rain snow mountain river sea sky grass ball box cube button logo icon sticker symbol sign cookie cake
balloon butterfly bear rabbit fox horse lion tiger dragon castle tower bridge key lamp clock book pen toy monster ghost alien
king queen crown sword shield gem ice fire water wood metal glass paper stone clay felt wool mosaic stained comic anime manga
ink pencil chalk crayon oil acrylic background white black red green blue yellow orange purple pink brown gray turquoise
empty blank wall floor field room street city forest beach night day lit fancy funny very is it this that my new old style
""".split()


@dataclass(frozen=True)
class Vocabulary:
    """tokens: by row. merges: in CLIP's order. clip_ids: of each row, ascending."""

    tokens: tuple[str, ...]
    merges: tuple[Merge, ...]
    clip_ids: tuple[int, ...]


def compact(words: Iterable[str]) -> Vocabulary:
    """The smallest part of CLIP's vocabulary in which each of these words that is one token in CLIP is one token too."""
    clip_ids, merges = clip_vocab.vocabulary()
    rank = {merge: place for place, merge in enumerate(merges)}
    needed: set[Merge] = set()
    for word in words:
        used, pieces = merge_word(word, rank)
        if pieces == 1:
            needed |= used
    kept = sorted(needed, key=rank.__getitem__)
    joined = {"".join(merge) for merge in merges}
    symbols = [token for token in clip_ids if token not in joined and token not in (clip_vocab.BEGIN, clip_vocab.END)]
    tokens = (*symbols, *("".join(merge) for merge in kept), clip_vocab.BEGIN, clip_vocab.END)
    return Vocabulary(tokens, tuple(kept), tuple(clip_ids[token] for token in tokens))


def merge_word(word: str, rank: dict[Merge, int]) -> tuple[set[Merge], int]:
    """The merges that a word goes through, and in how many tokens it ends."""
    pieces = [*word[:-1], word[-1] + WORD_END]
    used: set[Merge] = set()
    while len(pieces) > 1:
        best = min(zip(pieces, pieces[1:]), key=lambda pair: rank.get(pair, len(rank)))
        if best not in rank:
            break
        used.add(best)
        pieces = _merged(pieces, best)
    return used, len(pieces)


def _merged(pieces: list[str], pair: Merge) -> list[str]:
    merged, at = [], 0
    while at < len(pieces):
        together = tuple(pieces[at:at + 2]) == pair
        merged.append("".join(pair) if together else pieces[at])
        at += 2 if together else 1
    return merged


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer/` and `clip_token_ids.json` of a base into `folder`."""
    from transformers import CLIPTokenizer
    chosen = compact({*caption_words(), *MORE_WORDS, ","})
    home = folder / "tokenizer"
    home.mkdir(parents=True, exist_ok=True)
    _write_slow_files(chosen, home)
    CLIPTokenizer(str(home / "vocab.json"), str(home / "merges.txt"), model_max_length=MAX_TOKENS).save_pretrained(home)
    _write_slow_files(chosen, home)  # transformers 5 keeps tokenizer.json alone; older versions and hosts read these
    (folder / "clip_token_ids.json").write_text(json.dumps(chosen.clip_ids), encoding="utf-8")


def _write_slow_files(chosen: Vocabulary, home: Path) -> None:
    rows = {token: row for row, token in enumerate(chosen.tokens)}
    (home / "vocab.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in chosen.merges)]
    (home / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
