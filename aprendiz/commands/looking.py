"""inspect, share, methods, families, doctor: what there is."""

from __future__ import annotations

import argparse
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from .. import registry
from ..knobs import kind_words, knobs
from ..run import find_run
from ..settings import SECTIONS, BaseSettings
from ..texts import say
from ..views import flags
from ..views.terminal import put, put_json


def inspect(asked: argparse.Namespace) -> int:
    """What a file is, and what of it each host loads."""
    from ..formats.inspect import inspect as look
    found = look(Path(asked.file))
    if asked.json:
        put_json(found.as_dict())
    else:
        put("\n".join(found.lines()))
    return 0


def share(asked: argparse.Namespace) -> int:
    """Make a folder to publish."""
    from ..formats.share import plan
    from ..formats.share import share as make
    what = Path(asked.run)
    what = what if what.is_file() else find_run(asked.run).folder
    planned = plan(what, asked.out, asked.level)
    if not asked.json:
        put("\n".join(planned.lines()))
    folder = make(what, asked.out, asked.level)
    if asked.json:
        put_json({"folder": str(folder)})
    else:
        put(say("Written: {file}", file=str(folder)))
    return 0


def methods(asked: argparse.Namespace) -> int:
    """The ways of teaching, and every setting."""
    if asked.json:
        for name, method in registry.methods().items():
            put_json({"name": name, "title": method.title, "needs": sorted(method.needs),
                      "settings": settings_of(method.Settings)})
        return 0
    for name, method in registry.methods().items():
        taught = [family for family, one in registry.families().items() if method.needs <= one.offers]
        put(f"{name}: {say(method.title)} ({say('for {families}', families=', '.join(taught))})")
        tell_settings(flags.of_method(name))
    put(say("Settings of every method:"))
    for section in SECTIONS:
        put(f"[{section}]")
        tell_settings(of_section(section))
    return 0


def settings_of(settings: type) -> list[dict[str, Any]]:
    """A settings class as plain data."""
    found = []
    for field in fields(settings):
        one = knobs(settings)[field.name]
        found.append({"name": field.name, "takes": kind_words(settings, field.name), "default": field.default, **asdict(one)})
    return found


def of_section(section: str) -> list[flags.Flag]:
    """The settings of a section."""
    return [flag for flag in flags.flags().values() if flag.section == section]


def tell_settings(told: list[flags.Flag]) -> None:
    """Settings with what each takes and does."""
    for flag in told:
        put(f"    {flag.flag} {flags.metavar(flag)}\n        {flags.describe(flag).replace('%%', '%')}")


def families(asked: argparse.Namespace) -> int:
    """The model families."""
    for name, family in registry.families().items():
        if asked.json:
            put_json({"name": name, "title": family.title, "resolution": family.resolution, "bucket_step": family.bucket_step,
                      "offers": sorted(family.offers), "settings": settings_of(BaseSettings)})
        else:
            taught = ", ".join(method for method, one in registry.methods().items() if one.needs <= family.offers)
            put(f"{name}: {family.title}, {family.resolution} px ({say('for {methods}', methods=taught)})")
    if not asked.json:
        put("[base]")
        tell_settings(of_section("base"))
    return 0


def doctor(asked: argparse.Namespace) -> int:
    """What this machine can do; 1 where something stops all training."""
    from ..doctor import examine
    findings = examine(asked.out)
    for finding in findings:
        if asked.json:
            put_json(asdict(finding))
        else:
            put(f"{finding.name:20} {finding.value}" + (f"\n{'':20} -> {finding.remedy}" if finding.remedy else ""))
    return 1 if any(finding.stops for finding in findings) else 0
