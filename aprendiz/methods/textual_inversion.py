"""Textual inversion (Gal et al. 2022): the vectors of a new word are learned; the network and every other word stay as they are.

The vectors stand beside each text encoder's frozen vocabulary (`nets/embeddings.py`). Gradients flow back from the network's
cross attention through the text encoder to these rows alone; latents are encoded once, texts in each step.
Shapes: V vectors, D width of a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data import captions
from ..data import templates as phrases
from ..errors import AprendizError, Problem
from ..knobs import knob
from ..settings import plain_name
from . import Method, Part

if TYPE_CHECKING:
    import torch

    from ..data.folder import Picture
    from ..data.loader import Batch
    from ..families import Base, Family, Source
    from ..formats.metadata import TrainingFacts
    from ..objectives import Noisy
    from ..settings import Job

TEMPLATED = phrases.KINDS[1:]
RARE = 40_000  # CLIP's words are numbered by how common they are; those from here on mean next to nothing
SIGNS = "<>[](){}:,;\\|\"'*"  # prompts and hosts cut words at these, or weigh them


@dataclass(frozen=True, kw_only=True)
class TextualInversionSettings:
    """What textual inversion is told."""

    vectors: int | None = knob(None, "How many vectors the word stands for: more hold more, and take more of the prompt. "
                                     "Off: 1, or as many as the file it goes on from.", min=1, max=75, level="basic")
    initial_words: str | None = knob(None, "Common words to begin from, such as 'star' or 'small dog'. Off: noise like the "
                                           "vocabulary's.", level="basic")
    norm_limit: float | None = knob(None, "Longest vector, as a multiple of the vocabulary's mean length. Off: any length. Set "
                                          "it, to 1 or 2, when the word drowns the rest of a prompt.",
                                    min=0.1, max=100)
    templates: str = knob("captions", "What is said of a picture: its caption, or templates for a subject or a style, alone or "
                                      "with the caption after them. Templates where captions lack or say what the word itself "
                                      "should hold.", choices=phrases.KINDS)
    template_language: str = knob("en", "Language of the templates.", choices=phrases.LANGUAGES, when=("templates", TEMPLATED))
    own_templates: tuple[str, ...] = knob((), "Templates of your own instead: [name] is the word, [filewords] the caption.")
    continue_from: str | None = knob(None, "An embedding file to go on from; its vectors are repeated or averaged where another "
                                           "number is asked for.", path="file")
    also_pt: bool = knob(False, "Write AUTOMATIC1111's .pt beside the .safetensors file.")


class TextualInversion(Method):
    """One word, under the trigger in captions and under its file's name everywhere."""

    name = "textual_inversion"
    title = "Textual inversion"
    order = 20
    Settings = TextualInversionSettings
    needs = frozenset({"text_encoders", "embeddings"})
    learning_rate = 5e-3
    preview = ".preview.png"

    def __init__(self, base: Base, job: Job) -> None:
        import torch

        from ..nets import embeddings
        settings: TextualInversionSettings = job.method
        self.base, self.settings = base, settings
        tables = embeddings.tables(base)
        generator = torch.Generator().manual_seed(job.training.seed)
        begun = self._go_on(tables) or self._begin(tables, generator)
        self.rows = {key: torch.nn.Parameter(rows.float().clone()) for key, rows in zip(base.family.embedding_keys, begun)}
        limit = settings.norm_limit
        self.limits = {key: None if limit is None else limit * embeddings.mean_length(table)
                       for key, table in zip(self.rows, tables)}
        spellings = dict.fromkeys(name for name in (job.data.trigger, job.output.name) if name)
        embeddings.add_word(base, list(spellings), list(self.rows.values()), list(self.limits.values()))
        self.words = base.words

    def _go_on(self, tables: list[torch.Tensor]) -> list[torch.Tensor] | None:
        """The vectors of the file to go on from, if one is named, as many as are asked for."""
        from ..formats import embedding
        from ..nets.embeddings import spread
        if not self.settings.continue_from:
            return None
        found = embedding.read(Path(self.settings.continue_from))
        fitting = embedding.fit(found, self.base.family, [table.shape[1] for table in tables])
        return [spread(rows.to(table.device), self.settings.vectors or found.count) for rows, table in zip(fitting, tables)]

    def _begin(self, tables: list[torch.Tensor], generator: torch.Generator) -> list[torch.Tensor]:
        """The vectors of the initial words, or noise."""
        from ..nets.embeddings import noise, spread
        count, words = self.settings.vectors or 1, self.settings.initial_words
        if not words:
            return [noise(table, count, generator) for table in tables]
        ids = [tokenizer(words, add_special_tokens=False).input_ids for tokenizer in self.base.tokenizers]
        return [spread(table[own], count) for table, own in zip(tables, ids)]

    # Before anything loads

    @classmethod
    def settle(cls, job: Job) -> Job:
        """The word is the run's name and the run is named after the word: the one follows from the other where one is given."""
        job = super().settle(job)
        if job.data.trigger is None and job.output.name is not None:
            return job.with_values(data={"trigger": job.output.name})
        if job.output.name is None and job.data.trigger and plain_name(job.data.trigger):
            return job.with_values(output={"name": plain_name(job.data.trigger)})
        return job

    @classmethod
    def check(cls, job: Job, family: Family, source: Source) -> list[Problem]:
        problems = check_word(job, family, source)
        if job.prior.pictures or job.prior.prior_data:
            problems.append(Problem("Prior preservation changes nothing here, because textual inversion leaves the base as it "
                                    "is. Turn it off to save time.", {}, "prior.pictures", warning=True))
        return problems

    @classmethod
    def captions(cls, job: Job, picture: Picture) -> tuple[str, ...]:
        settings: TextualInversionSettings = job.method
        word = job.data.trigger
        if word is None:
            return picture.captions
        lines = settings.own_templates or phrases.lines(settings.templates, settings.template_language)
        if lines:
            return phrases.fill(lines, word, picture.captions)
        return tuple(dict.fromkeys(captions.with_trigger(caption, word) for caption in picture.captions))

    # While it learns

    @property
    def trains_text_encoder(self) -> bool:
        return True

    def parts(self) -> list[Part]:
        return [Part("word", dict(self.rows))]

    def predict(self, noisy: Noisy, batch: Batch) -> torch.Tensor:
        family = self.base.family
        assert batch.tokens is not None
        conditioning = family.collate([family.encode_tokens(self.base, batch.tokens)], batch.sizes)
        return family.predict(self.base, noisy.noisy_BCHW, noisy.timesteps_B, conditioning)

    def enabled(self, on: bool) -> None:
        self.base.words = self.words if on else {}

    def write(self, file: Path, tensors: dict[str, torch.Tensor], job: Job, facts: TrainingFacts) -> list[Path]:
        from ..formats import embedding, metadata
        from ..nets.embeddings import shorten
        vectors = {key: shorten(tensors[key], limit) for key, limit in self.limits.items()}
        written = [embedding.write(file, vectors, metadata.embedding_metadata(job, facts, file.stem))]
        if self.settings.also_pt:
            named = metadata.base_name(job)
            written.append(embedding.write_pt(file.with_suffix(".pt"), vectors, facts.steps, named, facts.base_sha256))
        return written

    @classmethod
    def arguments(cls, file: Path, condition: str = "...") -> list[str]:
        return ["--embedding", str(file)]


def check_word(job: Job, family: Family, source: Source) -> list[Problem]:
    """What speaks against the word, against what it begins from and against its templates."""
    settings: TextualInversionSettings = job.method
    words = dict.fromkeys(word for word in (job.data.trigger, job.output.name) if word)
    problems = [problem for word in words for problem in word_problems(word)]
    if settings.continue_from and settings.initial_words:
        problems.append(Problem("Both initial_words and continue_from are set. Keep one: the vectors can begin from one thing "
                                "only.", {}, "method.initial_words"))
    problems += [Problem("The template '{line}' does not name the word. Write [name] where it belongs.", {"line": line},
                         "method.own_templates") for line in settings.own_templates if "[name]" not in line]
    try:
        problems += base_problems(job, family, source)
    except AprendizError as error:
        problems += error.problems
    return problems


def word_problems(word: str) -> list[Problem]:
    """Why hosts would cut a word, or take another for it."""
    from ..formats import clip_vocab
    cut = next((sign for sign in word if sign in SIGNS), None)
    if cut:
        return [Problem("The word '{word}' holds '{sign}', where prompts and hosts cut words. Use letters, digits, dots, hyphens "
                        "and underscores.", {"word": word, "sign": cut}, "data.trigger")]
    if clip_vocab.vocabulary()[0].get(f"{word.lower()}</w>", RARE) < RARE:
        return [Problem("'{word}' is a common word, and wherever it stands in a prompt hosts will take it for the embedding. "
                        "Choose one that nobody writes by chance, such as '{other}'.", {"word": word, "other": f"{word}-x1"},
                        "data.trigger", warning=True)]
    return []


def base_problems(job: Job, family: Family, source: Source) -> list[Problem]:
    """What the vocabulary of the base has against the initial words, and its width against the file to go on from."""
    from ..formats import embedding
    from ..formats.loading import vocabularies
    settings: TextualInversionSettings = job.method
    layout = family.layout()
    if layout is None or not (settings.initial_words or settings.continue_from):
        return []
    known = vocabularies(source, job.base, layout)
    if settings.continue_from:
        embedding.fit(embedding.read(Path(settings.continue_from)), family, [width for width, _ in known])
    return [problem for word in (settings.initial_words or "").split() if (problem := unknown_word(word, known[0][1]))]


def unknown_word(word: str, tokenizer: Any) -> Problem | None:
    """A word that the vocabulary does not hold whole, so that it has no vector to begin from."""
    if len(tokenizer(word, add_special_tokens=False, verbose=False).input_ids) == 1:
        return None
    return Problem("The initial word '{word}' is not in the base's vocabulary, so it has no vector to begin from. Choose a more "
                   "common word for the same kind of thing, or leave initial_words out.", {"word": word}, "method.initial_words")


METHOD = TextualInversion
