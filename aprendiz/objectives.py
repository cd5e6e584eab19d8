"""What the loss is: how latents are noised, what the network is asked for, and how its answer is weighed.

Shapes: B batch, C latent channels, H W latent height and width. Diffusion (Ho et al. 2020): noisy = alpha x0 + sigma noise
with alpha^2 + sigma^2 = 1, SNR = alpha^2 / sigma^2, integer timesteps 0..999. Rectified flow (Liu et al. 2023): noisy = (1
- t) x0 + t noise, t in [0, 1]. The loss is computed in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .errors import Problem

if TYPE_CHECKING:
    from .data.loader import Batch
    from .families import Base, Source
    from .settings import ObjectiveSettings


@dataclass(frozen=True)
class Noisy:
    """A noised batch, and all that the loss needs of how it was made.

    timesteps_B: as the network takes them. alpha_B, sigma_B: noisy = alpha x0 + sigma noise. weight_B: of each sample's loss.
    """

    noisy_BCHW: Tensor
    target_BCHW: Tensor
    timesteps_B: Tensor
    alpha_B: Tensor
    sigma_B: Tensor
    weight_B: Tensor


class Objective:
    """Noise for a batch, and the loss of a prediction."""

    def __init__(self, base: Base, settings: ObjectiveSettings) -> None:
        self.settings = settings
        self.device = base.device

    def corrupt(self, batch: Batch) -> Noisy:
        """Noise a batch with its own draws."""
        raise NotImplementedError

    def losses(self, prediction_BCHW: Tensor, noisy: Noisy, batch: Batch) -> Tensor:
        """The loss of each sample (B), unweighted by prior preservation, for reports."""
        difference = F.mse_loss if self.settings.loss == "mse" else self._huber
        each_BCHW = difference(prediction_BCHW.float(), noisy.target_BCHW.float(), reduction="none")
        if batch.mask_B1HW is not None:
            each_BCHW = each_BCHW * batch.mask_B1HW
        return each_BCHW.mean((1, 2, 3)) * noisy.weight_B

    def _huber(self, prediction: Tensor, target: Tensor, reduction: str) -> Tensor:
        # Scaled so that it equals the squared error near zero.
        return F.huber_loss(prediction, target, reduction=reduction, delta=self.settings.huber_delta) * 2


class Diffusion(Objective):
    """Epsilon or v prediction on a fixed noise schedule."""

    def __init__(self, base: Base, settings: ObjectiveSettings) -> None:
        super().__init__(base, settings)
        self.prediction = base.prediction
        signal = signal_level(base.schedule, ends_in_noise(base, settings))
        self.alpha_T = signal.sqrt().float().to(self.device)
        self.sigma_T = (1 - signal).sqrt().float().to(self.device)
        self.weight_T = self._weights(signal).float().to(self.device)

    def _weights(self, signal_T: Tensor) -> Tensor:
        """Weight of each timestep: 1, or Min-SNR (Hang et al. 2023, section 3.4) for the quantity that is predicted."""
        if self.settings.min_snr_gamma is None:
            return torch.ones_like(signal_T)
        snr_T, gamma = signal_T / (1 - signal_T), self.settings.min_snr_gamma
        # Where nothing but noise is left the ratio is 0, and noise's own weight 1.
        return snr_T.clamp(max=gamma) / (snr_T + 1) if self.prediction == "v" else (gamma / snr_T).clamp(max=1)

    def corrupt(self, batch: Batch) -> Noisy:
        low, high = self.settings.timestep_min, self.settings.timestep_max
        timesteps_B = (low + batch.time_B * (high + 1 - low)).long().clamp(max=high)
        alpha_B, sigma_B = self.alpha_T[timesteps_B], self.sigma_T[timesteps_B]
        noise_BCHW = batch.noise_BCHW
        if self.settings.noise_offset:
            noise_BCHW = noise_BCHW + self.settings.noise_offset * batch.offset_BC11
        a, s = alpha_B[:, None, None, None], sigma_B[:, None, None, None]
        target = noise_BCHW if self.prediction == "epsilon" else a * noise_BCHW - s * batch.latents_BCHW
        return Noisy(a * batch.latents_BCHW + s * noise_BCHW, target, timesteps_B, alpha_B, sigma_B, self.weight_T[timesteps_B])


class RectifiedFlow(Objective):
    """Velocity prediction on straight paths, times drawn logit-normally (Esser et al. 2024) and shifted as the family asks."""

    def __init__(self, base: Base, settings: ObjectiveSettings) -> None:
        super().__init__(base, settings)
        self.schedule = base.schedule

    def corrupt(self, batch: Batch) -> Noisy:
        low, high = self.settings.timestep_min / 1000, (self.settings.timestep_max + 1) / 1000
        uniform_B = (low + batch.time_B * (high - low)).clamp(1e-5, 1 - 1e-5)
        t_B = torch.sigmoid(torch.special.ndtri(uniform_B))
        shift = flow_shift(self.schedule, batch.latents_BCHW.shape[-2] * batch.latents_BCHW.shape[-1] // 4)
        t_B = shift * t_B / (1 + (shift - 1) * t_B)
        t = t_B[:, None, None, None]
        noisy = (1 - t) * batch.latents_BCHW + t * batch.noise_BCHW
        return Noisy(noisy, batch.noise_BCHW - batch.latents_BCHW, t_B, 1 - t_B, t_B, torch.ones_like(t_B))


def objective(base: Base, settings: ObjectiveSettings) -> Objective:
    """The objective that a base was made with."""
    return RectifiedFlow(base, settings) if base.prediction == "flow" else Diffusion(base, settings)


def ends_in_noise(base: Base | Source, settings: ObjectiveSettings) -> bool:
    """Whether the last timestep taught is pure noise: as the job says, else as the base was made."""
    return base.zero_terminal_snr if settings.zero_terminal_snr is None else settings.zero_terminal_snr


def problems(settings: ObjectiveSettings, source: Source) -> list[Problem]:
    """What the objective's settings have against a base. Of pure noise only v tells anything (Lin et al. 2024, section 3.2)."""
    if not settings.zero_terminal_snr or source.zero_terminal_snr or source.prediction == "v":
        return []
    return [Problem("zero_terminal_snr is on, but this base predicts {prediction}, and only one that predicts v can be taught "
                    "from pure noise. Turn it off.", {"prediction": source.prediction}, "objective.zero_terminal_snr")]


def timesteps(schedule: dict[str, Any]) -> int:
    """How many timesteps a diffusers scheduler config tells."""
    return int(schedule.get("num_train_timesteps", 1000))


def betas(schedule: dict[str, Any]) -> Tensor:
    """The noise schedule of a diffusers scheduler config, as those schedulers make it: a float64 beta for every timestep."""
    count, kind = timesteps(schedule), schedule.get("beta_schedule", "scaled_linear")
    start, end = float(schedule.get("beta_start", 0.00085)), float(schedule.get("beta_end", 0.012))
    if schedule.get("trained_betas") is not None:
        return torch.tensor(schedule["trained_betas"], dtype=torch.float64)
    if kind == "linear":
        return torch.linspace(start, end, count, dtype=torch.float64)
    if kind == "scaled_linear":
        return torch.linspace(start**0.5, end**0.5, count, dtype=torch.float64) ** 2
    from diffusers.schedulers.scheduling_ddim import betas_for_alpha_bar
    return betas_for_alpha_bar(count).double()


def signal_level(schedule: dict[str, Any], zero_terminal_snr: bool) -> Tensor:
    """alpha^2 of every timestep (float64), from a diffusers scheduler config; rescaled to end in pure noise (Lin et al.

    2024, algorithm 1).
    """
    signal_T = torch.cumprod(1 - betas(schedule), 0)
    if zero_terminal_snr:
        root_T = signal_T.sqrt()
        signal_T = ((root_T - root_T[-1]) * root_T[0] / (root_T[0] - root_T[-1])) ** 2
    return signal_T


def flow_shift(schedule: dict[str, Any], tokens: int) -> float:
    """How far times are shifted towards noise: fixed, or growing with the picture's tokens (Flux.1's dynamic shift)."""
    if not schedule.get("use_dynamic_shifting", False):
        return float(schedule.get("shift", 1.0))
    few, many = schedule.get("base_image_seq_len", 256), schedule.get("max_image_seq_len", 4096)
    low, high = schedule.get("base_shift", 0.5), schedule.get("max_shift", 1.15)
    return math.exp(low + (high - low) * (tokens - few) / (many - few))
