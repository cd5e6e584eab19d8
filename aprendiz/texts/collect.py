"""Finds every English template in the code, and which of them a language still lacks.

    python -m aprendiz.texts.collect es > missing.json

A template is the text that a call hands to `say`, `Problem`, `Phrase`, `knob` (its help) or an error of the AprendizError tree,
or to any function of ours that has a parameter named `template`. It stands there literally, as a choice between literals, or
as a name for one; anything else is reported as loose, because it could not be translated. A method's title is a template too.
"""

from __future__ import annotations

import ast
import json
import string
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from . import translations

PACKAGE = Path(__file__).resolve().parent.parent
ERRORS = "AprendizError"
FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
CARRIED = ("template", "help", "title")  # an attribute, parameter or key of this name was collected where it was made


@dataclass(frozen=True)
class Template:
    """An English text for a person, and where it stands: file within the package, line."""

    text: str
    file: str
    line: int


@dataclass
class Found:
    """All templates, and the places ('file:line') of calls whose text is not literal."""

    templates: list[Template] = field(default_factory=list)
    loose: list[str] = field(default_factory=list)

    def texts(self) -> list[str]:
        """The different texts, in order of first appearance."""
        return list(dict.fromkeys(template.text for template in self.templates))


def collect(package: Path = PACKAGE) -> Found:
    """Every template of a package's code."""
    trees = {file.relative_to(package).as_posix(): ast.parse(file.read_text(encoding="utf-8"))
             for file in sorted(package.rglob("*.py"))}
    takers = carriers(trees)
    found = Found()
    constants = {name: texts for tree in trees.values() for name, texts in named_texts(tree.body).items() if name.isupper()}
    for file, tree in trees.items():
        if file.startswith("methods/"):
            found.templates += [Template(text, file, line) for text, line in titles(tree)]
        for call, names, parameters in calls(tree, {**constants, **named_texts(tree.body)}, frozenset()):
            argument = template_argument(call, takers)
            if argument is None:
                continue
            texts = literal(argument, names, parameters)
            if texts is None:
                found.loose.append(f"{file}:{call.lineno}")
            else:
                found.templates += [Template(text, file, call.lineno) for text in texts]
    return found


def titles(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """The titles of a file's classes, each with its line."""
    for kind in ast.walk(tree):
        for part in kind.body if isinstance(kind, ast.ClassDef) else ():
            if isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant) and isinstance(part.value.value, str) \
                    and any(isinstance(target, ast.Name) and target.id == "title" for target in part.targets):
                yield part.value.value, part.lineno


def carriers(trees: Mapping[str, ast.Module]) -> dict[str, int]:
    """Callables that take a template, with its position among the arguments."""
    takers = {"say": 0, "Problem": 0, "Phrase": 0, "knob": 1, ERRORS: 0}
    classes = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for kind in classes * 2:  # twice, so that a subclass may be seen before its parent
        own = any(isinstance(part, ast.FunctionDef) and part.name == "__init__" for part in kind.body)
        if not own and any(isinstance(parent, ast.Name) and parent.id in takers for parent in kind.bases):
            takers[kind.name] = 0
    functions = [node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, FUNCTION)]
    for one in functions * 2:
        names = [argument.arg for argument in one.args.posonlyargs + one.args.args]
        if "template" in names and not one.name.startswith("__") and hands_on(one, takers):
            takers[one.name] = names.index("template") - (names[0] in ("self", "cls"))
    return takers


def hands_on(function: ast.FunctionDef | ast.AsyncFunctionDef, takers: Mapping[str, int]) -> bool:
    """Whether a function gives its parameter `template` to a call that takes one."""
    arguments = [template_argument(node, takers) for node in ast.walk(function) if isinstance(node, ast.Call)]
    return any(isinstance(argument, ast.Name) and argument.id == "template" for argument in arguments)


def calls(node: ast.AST, names: Mapping[str, list[str]],
          parameters: frozenset[str]) -> Iterator[tuple[ast.Call, Mapping[str, list[str]], frozenset[str]]]:
    """Every call, with the texts that have names there and the parameters of the function around it."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, FUNCTION):
            inner = parameters | {argument.arg for argument in ast.walk(child.args) if isinstance(argument, ast.arg)}
            local = [part for part in ast.walk(child) if isinstance(part, ast.stmt)]
            yield from calls(child, {**names, **named_texts(local)}, inner)
        else:
            if isinstance(child, ast.Call):
                yield child, names, parameters
            yield from calls(child, names, parameters)


def named_texts(statements: list[ast.stmt]) -> dict[str, list[str]]:
    """Names that stand for literal texts: single ones, the values of a dictionary, the items of a sequence."""
    named: dict[str, list[str]] = {}
    for statement in statements:
        target = statement.targets[0] if isinstance(statement, ast.Assign) else getattr(statement, "target", None)
        value = statement.value if isinstance(statement, (ast.Assign, ast.AnnAssign)) else None
        if isinstance(target, ast.Name) and value is not None:
            several = value.values if isinstance(value, ast.Dict) else getattr(value, "elts", None)
            parts = [value] if several is None else several
            texts = [literal(part, {}, frozenset()) for part in parts]
            if texts and all(texts):
                named.setdefault(target.id, []).extend(text for some in texts if some for text in some)
    return named


def template_argument(call: ast.Call, takers: Mapping[str, int]) -> ast.expr | None:
    """The argument of a call that is a template, if the call takes one."""
    name = ""
    if isinstance(call.func, (ast.Name, ast.Attribute)):
        name = call.func.id if isinstance(call.func, ast.Name) else call.func.attr
    for keyword in call.keywords:
        if keyword.arg == "template" or (name == "knob" and keyword.arg == "help"):
            return keyword.value
    if name not in takers or len(call.args) <= takers[name]:
        return None
    return call.args[takers[name]]


def literal(value: ast.expr, names: Mapping[str, list[str]], parameters: frozenset[str]) -> list[str] | None:
    """The texts that an expression can be; empty if it hands on what was collected elsewhere, None if it cannot be told."""
    if isinstance(value, ast.Constant) and isinstance(value.value, str):
        return [value.value]
    if isinstance(value, ast.IfExp):
        sides = [literal(side, names, parameters) for side in (value.body, value.orelse)]
        return None if None in sides else [text for side in sides if side for text in side]
    if isinstance(value, ast.Name):
        return names[value.id] if value.id in names else [] if value.id in CARRIED and value.id in parameters else None
    if isinstance(value, ast.Subscript) and isinstance(value.slice, ast.Constant) and value.slice.value in CARRIED:
        return []
    if isinstance(value, ast.Subscript):
        return literal(value.value, names, parameters)
    if isinstance(value, ast.Call) and isinstance(value.func, ast.Attribute) and value.func.attr == "get":
        return literal(value.func.value, names, parameters)
    if isinstance(value, ast.Attribute) and value.attr in CARRIED:
        return []
    return None


def fields_of(template: str) -> set[tuple[str, str, str]]:
    """Named fields of a template with their format and conversion: {('file', '', '')}."""
    parts = string.Formatter().parse(template)
    return {(name, form or "", conversion or "") for _, name, form, conversion in parts if name is not None}


def missing(language: str) -> list[str]:
    """The templates that a language has no translation of."""
    known = translations(language)
    return [text for text in collect().texts() if text not in known]


def main() -> None:
    """Print what a language lacks as JSON, ready to be filled in."""
    empty = dict.fromkeys(missing(sys.argv[1]), "")
    sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
    print(json.dumps(empty, ensure_ascii=False, indent=2))


if __name__ == "__main__":
    main()
