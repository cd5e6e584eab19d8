"""Optimizers by name over the arena's flat slices, and the learning rate of any step.

The rate is a function of the step alone, so there is no scheduler to save. An optimizer's state is kept as plain tensors
and numbers.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from . import registry
from .errors import Problem, ProblemsError
from .knobs import kinds
from .nets.arena import Arena
from .settings import Job, OptimizerSettings, learning_rates, rates_of

PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "pytorch_optimizer", "lion": "pytorch_optimizer",
            "adafactor": "pytorch_optimizer", "schedulefree": "pytorch_optimizer"}


class Optimizer:
    """A torch optimizer over the arena, one group to a part, with its learning rates."""

    def __init__(self, arena: Arena, settings: OptimizerSettings, steps: int) -> None:
        self.settings, self.steps, self.master = settings, steps, arena.master
        self.rates: list[Callable[[int], float]] = []
        groups = []
        for part in arena.parts:
            start, stop = arena.slices[part.name]
            groups.append({"params": _parameters(arena, part.name, start, stop, settings.optimizer)})
            assert settings.optimizer != "prodigy" or part.learning_rate is None  # `part_rates` has refused it
            own = settings.learning_rate if part.learning_rate is None else part.learning_rate
            assert own is not None  # the method has settled it
            self.rates.append(rate_of(settings, own, steps))
        self.torch = build(groups, settings, arena.master.device)

    def step(self, number: int) -> None:
        """One update; `number` counts from 0."""
        for group, rate in zip(self.torch.param_groups, self.rates):
            group["lr"] = rate(number)
        self.torch.step()

    def average(self) -> Tensor:
        """The values to save and to show: schedule-free's average; for the others the masters themselves."""
        if self.settings.optimizer != "schedulefree":
            return self.master
        # Its own way back rounds; the copy does not, so that looking at the average never changes what is learned.
        before = self.master.clone()
        self.torch.eval()  # type: ignore[attr-defined]
        average = self.master.clone()
        self.torch.train()  # type: ignore[attr-defined]
        self.master.copy_(before)
        return average

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The whole state as named tensors and plain numbers."""
        kept = self.torch.state_dict()
        tensors = {f"{i}.{name}": value for i, state in kept["state"].items() for name, value in state.items()
                   if isinstance(value, Tensor)}
        plain = {f"{i}.{name}": value for i, state in kept["state"].items() for name, value in state.items()
                 if not isinstance(value, Tensor)}
        groups = [{name: value for name, value in group.items() if _is_plain(value)} for group in kept["param_groups"]]
        # Prodigy keeps sums over all parameters in its groups.
        tensors |= {f"group{i}.{name}": value for i, group in enumerate(kept["param_groups"]) for name, value in group.items()
                    if isinstance(value, Tensor)}
        return tensors, {"state": plain, "groups": groups}

    def restore(self, tensors: dict[str, Tensor], plain: dict[str, Any]) -> None:
        """Put back what `tensors` gave."""
        state: dict[int, dict[str, Any]] = {}
        groups = [{**now, **_untuple(kept)} for now, kept in zip(self.torch.state_dict()["param_groups"], plain["groups"])]
        for source in (tensors, plain["state"]):
            for name, value in source.items():
                place, _, rest = name.partition(".")
                if place.startswith("group"):
                    groups[int(place.removeprefix("group"))][rest] = value
                else:
                    state.setdefault(int(place), {})[rest] = value
        self.torch.load_state_dict({"state": state, "param_groups": groups})


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str, tuple, list))


def _untuple(group: dict[str, Any]) -> dict[str, Any]:
    """JSON made lists of tuples (betas)."""
    return {name: tuple(value) if name == "betas" else value for name, value in group.items()}


def _parameters(arena: Arena, part: str, start: int, stop: int, optimizer: str) -> list[nn.Parameter]:
    """A part as one flat parameter; as its own tensors where the optimizer needs their shapes (Adafactor)."""
    def parameter(master: Tensor, gradient: Tensor) -> nn.Parameter:
        made = nn.Parameter(master)
        made.grad = gradient
        return made

    if optimizer != "adafactor":
        return [parameter(arena.master[start:stop], arena.gradient[start:stop])]
    masters, gradients = arena.views(arena.master), arena.views(arena.gradient)
    names = next(p for p in arena.parts if p.name == part).tensors
    return [parameter(masters[name], gradients[name]) for name in names]


def build(groups: list[dict[str, Any]], settings: OptimizerSettings, device: torch.device) -> torch.optim.Optimizer:
    """The optimizer of the settings. Raises ProblemsError where its package is not there."""
    name, decay, betas = settings.optimizer, settings.weight_decay, (settings.beta1, settings.beta2)
    if missing := problems(settings):
        raise ProblemsError(missing)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=1e-4, betas=betas, weight_decay=decay, fused=_can_fuse(device))
    library = importlib.import_module(PACKAGES[name])
    made: torch.optim.Optimizer
    if name == "adamw8bit":
        made = library.optim.AdamW8bit(groups, lr=1e-4, betas=betas, weight_decay=decay)
    elif name == "prodigy":
        made = library.Prodigy(groups, lr=1.0, betas=betas, weight_decay=decay, safeguard_warmup=True, bias_correction=True)
    elif name == "lion":
        made = library.Lion(groups, lr=1e-4, betas=betas, weight_decay=decay)
    elif name == "adafactor":
        # It is chosen for its memory, so it keeps no mean gradient (Shazeer and Stern 2018, algorithm 4 without beta1). All
        # tensors of a part at once are no faster on a CPU, and take a copy of all its gradients.
        made = library.AdaFactor(groups, lr=1e-4, betas=(None, settings.beta2), weight_decay=decay, scale_parameter=False,
                                 relative_step=False, foreach=device.type != "cpu")
    else:
        made = library.ScheduleFreeAdamW(groups, lr=1e-4, betas=betas, weight_decay=decay)
    return made


def _can_fuse(device: torch.device) -> bool:
    """Whether AdamW can be one kernel here: on a CPU since torch 2.4."""
    version = tuple(int(number) for number in torch.__version__.split(".")[:2])
    return device.type in ("cuda", "xpu") or (device.type == "cpu" and version >= (2, 4))


def problems(settings: OptimizerSettings) -> list[Problem]:
    """The package that the optimizer needs, if it is not there."""
    name = PACKAGES.get(settings.optimizer, "torch")
    if importlib.util.find_spec(name) is not None:
        return []
    return [Problem("The optimizer '{optimizer}' needs the package {package}. Install it with `python -m pip install {package}`, "
                    "or choose adamw.", {"optimizer": settings.optimizer, "package": name.replace("_", "-")},
                    "optimizer.optimizer")]


def part_rates(job: Job) -> list[Problem]:
    """The method's own rates that Prodigy cannot follow, because it finds one rate for everything."""
    if job.optimizer.optimizer != "prodigy":
        return []
    method, problems = registry.methods()[job.method_name], []
    for name in (name for name, rate in rates_of(job.method).items() if rate is not None):
        if kinds(method.Settings)[name][1]:
            problems.append(Problem("Prodigy finds one learning rate for everything, so {name} cannot be set beside it. Turn it "
                                    "off, or choose another optimizer.", {"name": name}, f"method.{name}"))
        else:
            problems.append(Problem("Prodigy finds one learning rate for everything, but {method} needs two, learning_rate and "
                                    "{name}. Choose another optimizer.", {"method": method.title, "name": name},
                                    "optimizer.optimizer"))
    return problems


def rate_of(settings: OptimizerSettings, rate: float | str, steps: int) -> Callable[[int], float]:
    """The learning rate of a step (from 0): a number or a list of them, warmed up, then let down as the schedule says."""
    listed = learning_rates(rate) if isinstance(rate, str) else [(rate, None)]

    def peak(step: int) -> float:
        return next((value for value, until in listed if until is None or step < until), listed[-1][0])

    def at(step: int) -> float:
        warm = settings.warmup_steps
        if step < warm:
            return peak(step) * (step + 1) / warm
        if settings.schedule == "constant":
            return peak(step)
        done = (step - warm) / max(1, steps - warm)
        if settings.schedule == "cosine":
            done = (done * settings.restarts) % 1.0 if done < 1 else 1.0
            left = 0.5 * (1 + math.cos(math.pi * done))
        else:
            left = 1 - min(done, 1.0)
        return peak(step) * (settings.final_rate + (1 - settings.final_rate) * left)

    return at
