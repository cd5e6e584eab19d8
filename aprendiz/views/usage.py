"""The frame of the help in the person's language: argparse's own words, and the names of sections.

argparse asks gettext for them, which looks for binary catalogues under the locale's name. Ours are JSON, under the language that
the person chose, so argparse is given our answer in place of gettext's. Standard library only.
"""

from __future__ import annotations

import argparse

from ..texts import say

# As argparse writes them, from Python 3.10 on; it fills in what stands after a %.
WORDS = (
    "usage: ",
    "positional arguments",
    "options",
    "show this help message and exit",
    "argument %(argument_name)s: %(message)s",
    "the following arguments are required: %s",
    "expected one argument",
    "expected at least one argument",
    "ignored explicit argument %r",
    "invalid choice: %(value)r (choose from %(choices)s)",
)
SECTIONS = ("base", "data", "prior", "method", "objective", "optimizer", "training", "samples", "output")


def speak() -> None:
    """Let argparse speak as we do, from now on in this process; what it says besides stays English."""
    argparse._ = _told  # type: ignore[attr-defined]


def section(name: str) -> str:
    """What stands above a section's settings: its name, in another language after the word for it there."""
    told = say(SECTIONS[SECTIONS.index(name)])
    return name if told == name else f"{told} [{name}]"


def _told(text: str) -> str:
    return say(WORDS[WORDS.index(text)]) if text in WORDS else text
