"""Prompts for CLIP: weights, chunks of 75 tokens, text states.

Syntax: AUTOMATIC1111's, of which ComfyUI's is a part: `(a)` counts 1.1 times, `[a]` 1/1.1 times, `(a:1.3)` 1.3 times, nested ones
multiply; `\\(` and its like are plain characters; BREAK begins a new chunk.
Weights: AUTOMATIC1111's way: the text states of a token are multiplied by its weight, then all of its chunk by one number that
restores their mean; begin, end and padding count 1; the pooled state is not weighted. The mean is each prompt's own,
so that batching changes nothing.
Chunks: [begin] + at most 75 tokens + [end] + padding, each encoded by itself, text states one after the other. A word stands
whole in its chunk, as in ComfyUI, if it has at most 8 tokens. Where prompts of a batch have different numbers of chunks, each is
repeated to their least common multiple: attention over k copies of the same keys gives what one copy gives, so this too
changes nothing.
Words of our own (`Base.words`) are called by their name, in any case, or as ComfyUI does by `embedding:name`; their tokens always
stand together in one chunk, as in AUTOMATIC1111.

Shapes: B batch, N chunks, T tokens of a chunk (77), D features.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .embeddings import FIRST

Words = Mapping[str, Sequence[int]]

UP, DOWN = 1.1, 1 / 1.1
LONGEST_WORD = 8  # tokens; longer ones are split between chunks

WEIGHT = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)")
BREAK = re.compile(r"\s*\bBREAK\b\s*")


def parse(prompt: str) -> list[tuple[str, float]]:
    """A prompt as texts with weights, neighbours of equal weight joined.

    'a (red:1.3) [cat]' -> [('a ', 1.0), ('red', 1.3), (' ', 1.0), ('cat', 0.909..)].
    A bracket never closed counts to the end; one never opened is a character.
    """
    texts: list[str] = []
    factors: list[tuple[int, int, float]] = []  # (first text, one after the last, factor)
    open_round: list[int] = []
    open_square: list[int] = []
    at = 0
    while at < len(prompt):
        char, weight = prompt[at], WEIGHT.match(prompt, at)
        if char == "\\":
            follows = prompt[at + 1:at + 2]
            texts.append(follows if follows and follows in "()[]\\" else "")
            at += 1 + len(texts[-1])
            continue
        if weight and open_round:
            factors.append((open_round.pop(), len(texts), float(weight[1])))
            at = weight.end()
            continue
        if char in "([":
            (open_round if char == "(" else open_square).append(len(texts))
        elif char == ")" and open_round:
            factors.append((open_round.pop(), len(texts), UP))
        elif char == "]" and open_square:
            factors.append((open_square.pop(), len(texts), DOWN))
        else:
            texts.append(char)
        at += 1
    factors += [(start, len(texts), UP) for start in open_round] + [(start, len(texts), DOWN) for start in open_square]
    weights = [1.0] * len(texts)
    for start, stop, factor in factors:
        weights[start:stop] = [weight * factor for weight in weights[start:stop]]
    return _joined(texts, weights)


def _joined(texts: Sequence[str], weights: Sequence[float]) -> list[tuple[str, float]]:
    joined: list[tuple[str, float]] = []
    for text, weight in zip(texts, weights):
        if joined and joined[-1][1] == weight:
            joined[-1] = (joined[-1][0] + text, weight)
        else:
            joined.append((text, weight))
    return joined


def count_tokens(tokenizer: Any, text: str, weighted: bool = True) -> int:
    """How many tokens a prompt has, begin and end not counted."""
    return sum(len(word) for part in _words(tokenizer, text, weighted, {}) for word, _ in part)


def find_words(text: str, words: Words) -> list[tuple[str, Sequence[int]]]:
    """A text cut at words of our own: pieces of text with no tokens, and words with theirs.

    ('a Mara on grass', {'mara': (9, 10)}) -> [('a ', ()), ('Mara', (9, 10)), (' on grass', ())]. Of two names the longer counts.
    """
    if not words:
        return [(text, ())]
    names = "|".join(re.escape(name) for name in sorted(words, key=len, reverse=True))
    called = re.compile(rf"(?<!\w)(?:embedding:({names})(?:\.(?:safetensors|pt|bin))?|({names}))(?!\w)", re.IGNORECASE)
    tokens = {name.lower(): ids for name, ids in words.items()}
    pieces: list[tuple[str, Sequence[int]]] = []
    end = 0
    for found in called.finditer(text):
        name = found[1] or found[2]
        pieces += [(text[end:found.start()], ()), (name, tokens[name.lower()])]
        end = found.end()
    return [*pieces, (text[end:], ())]


def _words(tokenizer: Any, prompt: str, weighted: bool, own: Words) -> list[list[tuple[list[int], float]]]:
    """The parts of a prompt between BREAKs, each as words (token ids) with weights; one part of plain text unless `weighted`."""
    parts: list[list[tuple[list[int], float]]] = [[]]
    whole = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens}  # such tokens carry no mark of a word's end
    for text, weight in parse(prompt) if weighted else [(prompt, 1.0)]:
        for i, piece in enumerate(BREAK.split(text) if weighted else [text]):
            if i:
                parts.append([])
            for words, tokens in find_words(piece, own):
                found = [list(tokens)] if tokens else _split(tokenizer, words, whole)
                parts[-1] += [(word, weight) for word in found]
    return parts


def _split(tokenizer: Any, text: str, whole: set[str]) -> list[list[int]]:
    """The tokens of a text, word by word."""
    words: list[list[int]] = [[]]
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    for token, name in zip(ids, tokenizer.convert_ids_to_tokens(ids)):
        words[-1].append(token)
        if name.endswith("</w>") or name in whole:
            words.append([])
    return [word for word in words if word]


def chunks(tokenizer: Any, prompt: str, length: int = 75, max_tokens: int | None = None, weighted: bool = True,
           words: Words | None = None) -> list[list[tuple[int, float]]]:
    """A prompt as chunks of at most `length` (token, weight); at least one, which may be empty. Cut after `max_tokens`."""
    made: list[list[tuple[int, float]]] = []
    left = math.inf if max_tokens is None else max_tokens
    for part in _words(tokenizer, prompt, weighted, words or {}):
        made.append([])
        for word, weight in part:
            whole = len(word) <= LONGEST_WORD or word[0] >= FIRST
            if whole and length - len(made[-1]) < len(word):
                made.append([])
            for token in word:
                if left < 1:
                    break
                if len(made[-1]) == length:
                    made.append([])
                made[-1].append((token, weight))
                left -= 1
    if max_tokens is None:
        return made
    # The space left at a chunk's end by words that stand whole is no reason for one chunk more than was asked for.
    kept = made[:math.ceil(max_tokens / length)]
    while len(kept) > 1 and not kept[-1]:
        kept.pop()
    return kept


def tokenize(tokenizer: Any, prompts: Sequence[str], max_tokens: int | None = None, weighted: bool = True,
             words: Words | None = None) -> tuple[Tensor, Tensor]:
    """Token ids (B, N, 77) and weights (B, N, 77) of prompts, each repeated to the least common number of chunks.

    max_tokens: longer prompts are cut. weighted: whether the syntax above is read; otherwise brackets are characters.
    words: the tokens of words of our own, by their name.
    """
    size = int(tokenizer.model_max_length)
    begin, end, pad = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
    ids, weights = [], []
    for prompt in prompts:
        made = chunks(tokenizer, prompt, size - 2, max_tokens, weighted, words)
        filled = [[(begin, 1.0), *chunk, (end, 1.0), *[(pad, 1.0)] * (size - 2 - len(chunk))] for chunk in made]
        ids.append(torch.tensor([[[token for token, _ in chunk] for chunk in filled]]))
        weights.append(torch.tensor([[[weight for _, weight in chunk] for chunk in filled]]))
    return torch.cat(stretch(ids)), torch.cat(stretch(weights))


def stretch(states: Sequence[Tensor]) -> list[Tensor]:
    """Tensors (B, length, ...) of any lengths, each repeated along dimension 1 to the least common multiple of all lengths."""
    length = math.lcm(*(state.shape[1] for state in states))
    return [state.repeat(1, length // state.shape[1], *[1] * (state.ndim - 2)) for state in states]


def core(encoder: nn.Module) -> nn.Module:
    """The text model itself: `CLIPTextModelWithProjection` keeps it inside, as `CLIPTextModel` did before transformers 5.6."""
    return encoder.text_model if hasattr(encoder, "text_model") else encoder  # type: ignore[return-value]


def encode(encoder: nn.Module, ids_BNT: Tensor, weights_BNT: Tensor, layer: int, normalise: bool) -> tuple[Tensor, Tensor]:
    """Text states (B, N T, D), and the last layer's normalised states of the first chunk (B, T, D), for pooling.

    layer: which counts, from the end: 1 is the last. normalise: whether the final layer norm is applied (always to the last).
    """
    place = next(encoder.parameters()).device
    flat = ids_BNT.to(place).flatten(0, 1)
    out = encoder(input_ids=flat, output_hidden_states=layer > 1)
    states = out.last_hidden_state
    if layer > 1:
        states = out.hidden_states[max(-layer, -len(out.hidden_states))]
        states = core(encoder).final_layer_norm(states) if normalise else states  # type: ignore[operator]
    weighted = emphasise(states, weights_BNT.to(place).flatten(0, 1))
    batch, count = ids_BNT.shape[:2]
    first = out.last_hidden_state.unflatten(0, (batch, count))[:, 0]
    return weighted.unflatten(0, (batch, count)).flatten(1, 2), first


def emphasise(states_BTD: Tensor, weights_BT: Tensor) -> Tensor:
    """Text states times the weights of their tokens, their mean restored. Weights of 1 change no bit."""
    states = states_BTD.float()
    weighted = states * weights_BT[..., None].float()
    before, after = states.detach().mean((1, 2), keepdim=True), weighted.detach().mean((1, 2), keepdim=True)
    return (weighted * torch.where(after == 0, torch.ones_like(after), before / after)).to(states_BTD.dtype)


def pool(encoder: nn.Module, states_BTD: Tensor, ids_BT: Tensor, end: int) -> Tensor:
    """The pooled state (B, D) of `CLIPTextModelWithProjection`: the state at the first end of text, projected.

    The end is found by the tokenizer's own id: configurations in use name a wrong one, which fails once tokens are added.
    """
    place = (ids_BT.to(states_BTD.device) == end).int().argmax(-1)
    picked = states_BTD[torch.arange(len(place), device=place.device), place]
    projected: Tensor = encoder.text_projection(picked)  # type: ignore[operator]
    return projected


ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
FEED_FORWARD = ("mlp.fc1", "mlp.fc2")


def lora_targets(encoder: nn.Module, targets: str) -> list[str]:
    """The layers of a text encoder that a LoRA of this reach wraps: attention, and feed-forward unless it is 'attention'."""
    ends = ATTENTION if targets == "attention" else ATTENTION + FEED_FORWARD
    return [name for name, _ in encoder.named_modules() if name.endswith(ends) and "encoder.layers." in name]


def lora_name(prefix: str, module: str) -> str:
    """'lora_te_text_model_encoder_layers_0_mlp_fc1', whether transformers says `text_model.` or not."""
    return prefix + ("" if module.startswith("text_model.") else "text_model_") + module.replace(".", "_")
