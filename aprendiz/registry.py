"""Finds the families and methods: one class per file in `families/` and `methods/`. Being there is being known.

Standard library only: hosts import this, and the files it imports keep torch inside their functions.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any

from . import families as families_package
from . import methods as methods_package

if TYPE_CHECKING:
    from .families import Family
    from .methods import Method


@cache
def families() -> dict[str, Family]:
    """Every model family by name, in the order in which they are tried on a file."""
    found = [module.FAMILY for module in _modules(families_package)]
    return {family.name: family for family in sorted(found, key=lambda family: family.order)}


@cache
def methods() -> dict[str, type[Method]]:
    """Every way of teaching by name."""
    found = [module.METHOD for module in _modules(methods_package)]
    return {method.name: method for method in sorted(found, key=lambda method: method.order)}


def _modules(package: ModuleType) -> list[Any]:
    path, name = package.__path__, package.__name__
    return [importlib.import_module(f"{name}.{info.name}") for info in pkgutil.iter_modules(path)]
