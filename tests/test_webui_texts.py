"""The localisations of the WebUIs are written from the page's texts, and are up to date."""

from __future__ import annotations

import json

import pytest

from aprendiz.views import webui_texts
from aprendiz.views.controls import controls


def test_the_files_are_as_they_would_be_written_now() -> None:
    for file, content in webui_texts.files().items():
        assert file.read_text(encoding="utf-8") == content, f"{file.name} is stale: python -m aprendiz.views.webui_texts"


@pytest.mark.parametrize("language", webui_texts.NAMES.values())
def test_every_setting_says_what_it_does_in_the_hosts_language(language: str) -> None:
    told = webui_texts.localization(language)
    assert [control.where for control in controls() if control.knob.help not in told] == []
    assert all(word.strip() and "{" not in word for word in told.values())


def test_a_host_can_read_them() -> None:
    for file in webui_texts.files():
        read = json.loads(file.read_text(encoding="utf-8"))
        assert read["Learning rate"] in ("Tasa de aprendizaje", "Taxa de aprendizado")
        assert all(isinstance(word, str) for word in read.values())
