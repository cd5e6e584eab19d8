"""What is said of a picture when a word is taught by templates (Gal et al. 2022, appendix E), in three languages.

[name] is the word, [filewords] the picture's own caption. Subject templates name the thing, style templates the manner. Those of
a language suit bases whose text encoder knows it; CLIP was trained on English above all. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .captions import clean

KINDS = ("captions", "subject", "style", "subject_filewords", "style_filewords")
LANGUAGES = ("en", "es", "pt-BR")

SUBJECT = {
    "en": ("a photo of a [name]", "a rendering of a [name]", "a cropped photo of the [name]", "the photo of a [name]",
           "a photo of a clean [name]", "a close-up photo of a [name]", "a bright photo of the [name]", "a photo of my [name]",
           "a photo of the cool [name]", "a good photo of the [name]", "a picture of one [name]", "a depiction of a [name]"),
    "es": ("una foto de [name]", "una imagen de [name]", "una foto recortada de [name]", "la foto de [name]",
           "una foto nítida de [name]", "un primer plano de [name]", "una foto luminosa de [name]", "una foto de mi [name]",
           "una foto oscura de [name]", "una buena foto de [name]", "un dibujo de [name]", "una representación de [name]"),
    "pt-BR": ("uma foto de [name]", "uma imagem de [name]", "uma foto recortada de [name]", "a foto de [name]",
              "uma foto nítida de [name]", "um close de [name]", "uma foto clara de [name]", "uma foto do meu [name]",
              "uma foto escura de [name]", "uma boa foto de [name]", "um desenho de [name]", "uma representação de [name]"),
}
STYLE = {
    "en": ("a painting in the style of [name]", "a rendering in the style of [name]", "a picture in the style of [name]",
           "a cropped painting in the style of [name]", "a close-up painting in the style of [name]", "art by [name]",
           "a bright painting in the style of [name]", "a dark painting in the style of [name]",
           "a small painting in the style of [name]", "a large painting in the style of [name]"),
    "es": ("una pintura al estilo de [name]", "una imagen al estilo de [name]", "un dibujo al estilo de [name]",
           "una pintura recortada al estilo de [name]", "un primer plano al estilo de [name]", "arte de [name]",
           "una pintura luminosa al estilo de [name]", "una pintura oscura al estilo de [name]",
           "una pintura pequeña al estilo de [name]", "una pintura grande al estilo de [name]"),
    "pt-BR": ("uma pintura no estilo de [name]", "uma imagem no estilo de [name]", "um desenho no estilo de [name]",
              "uma pintura recortada no estilo de [name]", "um close no estilo de [name]", "arte de [name]",
              "uma pintura clara no estilo de [name]", "uma pintura escura no estilo de [name]",
              "uma pintura pequena no estilo de [name]", "uma pintura grande no estilo de [name]"),
}


def lines(kind: str, language: str) -> tuple[str, ...]:
    """The templates of a kind; none of 'captions'."""
    if kind == "captions":
        return ()
    plain = (SUBJECT if kind.startswith("subject") else STYLE)[language]
    return tuple(f"{line}, [filewords]" for line in plain) if kind.endswith("_filewords") else plain


def fill(templates: Sequence[str], word: str, captions: Sequence[str]) -> tuple[str, ...]:
    """Every template with the word and with each caption; each text once. The word that stands before a caption is taken off."""
    front = re.compile(rf"{re.escape(word)}\s*(?:,\s*|$)", re.IGNORECASE)
    filewords = [front.sub("", caption, count=1) if front.match(caption) else caption for caption in captions]
    filled = (clean(template.replace("[name]", word).replace("[filewords]", words)).strip(" ,")
              for words in filewords for template in templates)
    return tuple(dict.fromkeys(filled))
