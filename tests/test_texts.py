"""Every sentence for a person exists in every language, with the same fields."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from aprendiz.errors import DatasetError, Problem
from aprendiz.texts import LANGUAGES, nearest, say, translations
from aprendiz.texts.collect import collect, fields_of

FOREIGN = [language for language in LANGUAGES if language != "en"]
FOUND = collect()


def test_every_template_stands_literally_in_the_code() -> None:
    assert FOUND.loose == [], "these calls hand over a text that is not literal, so it could not be translated"


@pytest.mark.parametrize("language", FOREIGN)
def test_every_template_has_a_translation(language: str) -> None:
    known = translations(language)
    lacking = [f"{one.file}:{one.line}: {one.text}" for one in FOUND.templates if not known.get(one.text)]
    assert lacking == [], f"python -m aprendiz.texts.collect {language} prints these, ready to be filled in"


@pytest.mark.parametrize("language", FOREIGN)
def test_no_translation_outlives_its_template(language: str) -> None:
    assert sorted(set(translations(language)) - set(FOUND.texts())) == []


@pytest.mark.parametrize("language", FOREIGN)
def test_translations_name_the_same_fields_as_their_templates(language: str) -> None:
    differing = [text for text, translated in translations(language).items() if fields_of(text) != fields_of(translated)]
    assert differing == []


@pytest.mark.parametrize("language", FOREIGN)
def test_settings_are_explained_in_the_language_itself(language: str) -> None:
    # 'Error: {problem}' may well be the same word in both.
    same = [text for text, translated in translations(language).items() if text == translated and len(words(text)) > 1]
    assert same == [], "these sentences are still English"


def words(template: str) -> list[str]:
    """The words of a template, less its fields."""
    return re.findall(r"[A-Za-z]{3,}", re.sub(r"{[^}]*}", "", template))


def test_the_collector_sees_what_is_literal_and_reports_what_is_not(tmp_path: Path) -> None:
    (tmp_path / "errors.py").write_text("class AprendizError(Exception):\n    pass\nclass FileError(AprendizError):\n    pass\n")
    (tmp_path / "code.py").write_text(
        "REMEDIES = {'full': 'Free some space.'}\n"
        "def tell(template, **fields):\n    say(template, **fields)\n"
        "def work(name, short):\n"
        "    tell('One {field}.', field=1)\n"
        "    raise FileError('Two.' if short else 'Three.')\n"
        "    Problem(REMEDIES[name])\n"
        "    say(f'{name} is wrong')\n"
        "    say(name)\n"
    )
    found = collect(tmp_path)
    assert found.texts() == ["One {field}.", "Two.", "Three.", "Free some space."]
    assert found.loose == ["code.py:8", "code.py:9"]


@pytest.mark.parametrize(
    ("tag", "language"),
    [("es_MX.UTF-8", "es"), ("es", "es"), ("Spanish_Spain", "es"), ("pt_PT", "pt-BR"), ("Portuguese_Brazil.1252", "pt-BR"),
     ("de_DE", "en"), ("C", "en"), ("est", "en"), ("", "en")],
)
def test_the_language_nearest_to_the_locale_is_spoken(tag: str, language: str) -> None:
    assert nearest(tag) == language


@pytest.mark.parametrize("language", FOREIGN)
def test_an_error_speaks_the_persons_language_and_the_log_english(language: str, monkeypatch: pytest.MonkeyPatch) -> None:
    template = "{name} is {value}. It must be at least {low}."
    monkeypatch.setenv("APRENDIZ_LANGUAGE", language)
    error = DatasetError(template, name="steps", value=-1, low=1)
    assert str(error) == translations(language)[template].format(name="steps", value=-1, low=1)
    assert str(error) != error.problem.english == "steps is -1. It must be at least 1."
    problem = Problem(template, {"name": "steps", "value": -1, "low": 1})
    assert str(problem) == say(template, to=language, name="steps", value=-1, low=1)
