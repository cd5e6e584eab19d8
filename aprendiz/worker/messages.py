"""What the worker tells (events) and what it is told (commands), as data.

Both are lines of JSON in a run's folder; `docs/protocol.md` is this page for people. Standard library only: hosts import this.
"""

from __future__ import annotations

PROTOCOL = 1  # `v` of every event and command; raised when a field changes its meaning

COMMON = {
    "v": "version of this protocol",
    "attempt": "0 when the run was created, then 1, 2, ... each time a worker takes it up",
    "time": "seconds since 1970",
    "event": "the kind",
}

EVENTS: dict[str, dict[str, str]] = {
    "queued": {
        "job": "hash of the resolved job with its pictures (attempt 0 only)",
        "dataset": "digest of the pictures (attempt 0 only)",
        "device": "what it waits for, such as cuda:0",
        "ahead": "how many runs come before it there",
    },
    "ready": {
        "device": "what it trains on",
        "pid": "process of the worker",
        "python": "version",
        "torch": "version",
        "aprendiz": "version",
    },
    "preflight": {
        "pictures": "how many are trained on",
        "steps": "optimizer steps of the whole run, null while they follow from the minutes that there are",
        "epochs": "how often each picture is seen, null then too",
        "problems": "warnings, each {template, fields, where, warning, text}",
        "seconds": "forecast, null where unknown",
        "disk_gb": "forecast",
        "memory_gb": "forecast",
        "text": "the same for people, in English",
    },
    "caching": {
        "what": "pictures, captions, pictures of the base's own, or speed (steps that are timed and undone)",
        "done": "how many",
        "total": "of how many",
    },
    "step": {
        "step": "optimizer steps done, from 1",
        "steps": "of how many",
        "epoch": "epochs done, a fraction",
        "loss": "of this step, null if it was no number",
        "learning_rate": "of this step",
        "pictures_per_second": "lately",
        "memory_gb": "now on the device",
        "peak_memory_gb": "highest so far",
    },
    "validation": {"step": "after which step", "loss": "on the pictures kept apart, always the same noise"},
    "sample": {
        "step": "after which step; 0 is the base",
        "file": "the picture, from the run's folder on",
        "prompt": "what was asked for",
        "seed": "of its noise",
        "index": "which of the sample prompts, from 0",
    },
    "score": {"step": "after which step; 0 is the base", "name": "of the measure", "value": "a number, or null"},
    "checkpoint": {
        "step": "after which step",
        "folder": "the resumable state, from the run's folder on",
        "file": "the loadable file of that step, from the run's folder on",
    },
    "paused": {
        "step": "after which step",
        "by": "host where a host draws pictures meanwhile: it goes on by itself; null where a person asked",
    },
    "resumed": {"step": "steps already done: after a pause, or when an attempt goes on from a saved state"},
    "message": {"template": "English, with named fields", "fields": "their values", "text": "both together, in English"},
    "warning": {"template": "English, with named fields", "fields": "their values", "text": "both together, in English"},
    "finished": {
        "step": "optimizer steps done",
        "file": "the result, from the run's folder on",
        "report": "the report's folder, from the run's folder on",
        "seconds": "this attempt's training",
    },
    "stopped": {"step": "after which step; the run can be resumed"},
    "failed": {
        "problems": "each {template, fields, where, warning, text}",
        "bug": "true where the fault is ours: a traceback is in the log",
        "log": "file to look into, from the run's folder on",
    },
}

ENDS = ("finished", "stopped", "failed")
ASIDE = ("message", "warning", "sample", "score", "checkpoint", "validation")  # they do not tell running from paused

LEASE = 120.0  # seconds after which a pause that a host asked for ends unless it is asked for again: the host may be gone

LOG_HEAD = "--- attempt begun"  # a line of log.txt begins so where a worker is started

COMMANDS: dict[str, str] = {
    "pause": "stop between two steps and free the device's memory; the worker lives on",
    "resume": "go on after a pause",
    "stop": "finish the step, save, end; the run can be resumed",
    "save": "save a state and a loadable file after this step",
    "sample": "draw the sample pictures after this step",
}
