"""Samplers by their usual names, as diffusers' schedulers set up for a base.

Noise schedules are those of DDPM (Ho et al. 2020), spacings those of Lin et al. (2024): bases that predict v or reach pure noise
begin at the very last timestep ("trailing"), and whatever is drawn in many steps does ("linspace"). Flows are integrated with
Euler's method whatever is asked for.

Shapes: B batch, C latent channels, H W latent height and width.
"""

from __future__ import annotations

import inspect
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import objectives

if TYPE_CHECKING:
    from .families import Base

# What the hosts call them: (sampler, schedule type), as in the parameters that AUTOMATIC1111 writes into pictures.
TITLES = {
    "ddim": ("DDIM", None), "euler": ("Euler", None), "euler_a": ("Euler a", None), "heun": ("Heun", None), "lms": ("LMS", None),
    "dpm++_2m": ("DPM++ 2M", None), "dpm++_2m_karras": ("DPM++ 2M", "Karras"), "dpm++_sde": ("DPM++ SDE", None),
    "unipc": ("UniPC", None), "pndm": ("PLMS", None), "lcm": ("LCM", None),
}
DRAWS_NOISE = frozenset({"euler_a", "dpm++_sde", "lcm"})  # noise at every step, not only at the first
MANY = 50  # steps: with more, leading spacing, which counts up by 1000 // steps, begins ever earlier: 501 steps half way
LCM_STEPS = 50  # latent consistency models were distilled from a schedule of 50 (Luo et al. 2023), so they take no more


def title(base: Base, name: str) -> tuple[str, str | None]:
    """What hosts call the sampler that a base is drawn with, and its schedule type."""
    return TITLES["euler" if base.prediction == "flow" else name]


def trailing(base: Base) -> bool:
    """Whether sampling must begin at the last timestep, with guidance rescaled against overexposure (Lin et al. 2024)."""
    return base.prediction == "v" or base.zero_terminal_snr


def spacing(base: Base, steps: int) -> str:
    """How so many steps lie among the timesteps, in diffusers' words."""
    if MANY < steps < objectives.timesteps(base.schedule):
        return "linspace"
    # As many steps as timesteps take every one; in between, trailing may give one step too many, at timestep -1 (61 steps do).
    return "trailing" if trailing(base) or steps > MANY else "leading"


def scheduler(base: Base, name: str, steps: int, latents: tuple[int, int]) -> Any:
    """A diffusers scheduler, its timesteps set. `latents`: (height, width) of the latents, which shifts some flows.

    Names as in `settings.SAMPLERS`.
    """
    from diffusers import DDIMScheduler, PNDMScheduler

    with warnings.catch_warnings():
        # diffusers hands torch tensors to numpy 2 in a way that numpy will once refuse; nothing that a person could mend.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        if base.prediction == "flow":
            return _flow(base, steps, latents)
        built = _diffusion(base, name, spacing(base, steps))
        built.set_timesteps(steps)
        if steps > MANY and isinstance(built, (DDIMScheduler, PNDMScheduler)):
            _close_gaps(built)
        return built


def begin(sampler: Any, skipped: int) -> Tensor:
    """The timesteps that are left after skipping some at the noisy end (image-to-image), the sampler set to begin there."""
    from diffusers import PNDMScheduler

    if isinstance(sampler, PNDMScheduler):
        # It counts its steps and takes the second one twice, as its warm-up (Liu et al. 2022, without the Runge-Kutta start).
        once = torch.unique(sampler.timesteps).flip(0)[skipped:]
        return torch.cat([once[:2], once[1:]])
    if hasattr(sampler, "set_begin_index"):  # those that keep a step's index; the others go by the timestep itself
        sampler.set_begin_index(skipped * sampler.order)
    left: Tensor = sampler.timesteps[skipped * sampler.order:]
    return left


def betas(base: Base) -> Tensor:
    """The base's noise schedule, 1000 betas; brought to (nearly) zero terminal SNR where the base was trained so."""
    found = objectives.betas(base.schedule)
    return rescale_zero_terminal_snr(found) if base.zero_terminal_snr else found


def rescale_zero_terminal_snr(betas: Tensor) -> Tensor:
    """Algorithm 1 of Lin et al. (2024). The last alpha is 2^-24 instead of 0, so that sigma stays finite."""
    root = torch.cumprod(1 - betas, dim=0).sqrt()
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    bar = (root**2).clamp(min=2.0**-24)
    return 1 - torch.cat([bar[:1], bar[1:] / bar[:-1]])


def _diffusion(base: Base, name: str, spread: str) -> Any:
    import diffusers as d

    common: dict[str, Any] = {
        "trained_betas": betas(base).float().numpy(),
        "num_train_timesteps": objectives.timesteps(base.schedule),
        "prediction_type": "v_prediction" if base.prediction == "v" else "epsilon",
    }
    # Leading with an offset of 1, as every Stable Diffusion release sampled.
    end = spread != "leading"
    spaced = common | {"timestep_spacing": spread, "steps_offset": 0 if end else 1}
    if name == "ddim":
        return d.DDIMScheduler(**spaced, clip_sample=False, set_alpha_to_one=end)
    if name == "euler":
        return d.EulerDiscreteScheduler(**spaced)
    if name == "euler_a":
        return d.EulerAncestralDiscreteScheduler(**spaced)
    if name == "heun":
        return d.HeunDiscreteScheduler(**spaced)
    if name == "lms":
        return Lms(**spaced)
    if name in ("dpm++_2m", "dpm++_2m_karras"):
        return d.DPMSolverMultistepScheduler(**spaced, use_karras_sigmas=name.endswith("karras"))
    if name == "dpm++_sde":
        # Its own spacing always begins at the last timestep.
        return d.DPMSolverSinglestepScheduler(**common, algorithm_type="sde-dpmsolver++", lower_order_final=True)
    if name == "unipc":
        return d.UniPCMultistepScheduler(**spaced)
    if name == "pndm":
        return d.PNDMScheduler(**spaced, skip_prk_steps=True, set_alpha_to_one=end)
    if name == "lcm":
        return d.LCMScheduler(**common, original_inference_steps=LCM_STEPS)
    raise KeyError(name)


def _close_gaps(sampler: Any) -> None:
    """Make DDIM's and PLMS's steps end where the next one begins.

    They step down by 1000 // steps, and the next timestep may lie lower: of 600 steps the noise was taken away by half. No step
    begins in between, so the next one's noise level is told there.
    """
    levels = sampler.alphas_cumprod.clone()
    times = torch.unique(sampler.timesteps).flip(0)  # PLMS has one twice
    stride = int(sampler.config.num_train_timesteps) // sampler.num_inference_steps
    sampler.alphas_cumprod[times[:-1] - stride] = levels[times[1:]]


def _flow(base: Base, steps: int, latents: tuple[int, int]) -> Any:
    import diffusers as d

    # Only what is about noise: a sampler's own habits in the file are not the base's.
    names = {"num_train_timesteps", "shift", "use_dynamic_shifting", "base_shift", "max_shift", "base_image_seq_len",
             "max_image_seq_len", "shift_terminal", "time_shift_type"}
    taken = names & set(base.schedule) & set(inspect.signature(d.FlowMatchEulerDiscreteScheduler).parameters)
    built = d.FlowMatchEulerDiscreteScheduler(**{key: base.schedule[key] for key in taken})
    sigmas = np.linspace(1.0, 1 / steps, steps)
    built.set_timesteps(sigmas=sigmas, mu=_shift(built.config, latents) if built.config.use_dynamic_shifting else None)
    return built


def _shift(config: Any, latents: tuple[int, int]) -> float:
    """The resolution's shift of a flow (Esser et al. 2024, section 5.3.2): linear in the number of 2 x 2 patches."""
    patches = math.ceil(latents[0] / 2) * math.ceil(latents[1] / 2)
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    return float(config.base_shift + slope * (patches - config.base_image_seq_len))


class Lms:
    """Linear multistep sampler of order 4 (Katherine Crowson, k-diffusion): the past slopes, extrapolated in sigma.

    Like a diffusers scheduler, and without scipy, which theirs needs: the integrals of the Lagrange polynomials are exact by
    Gauss-Legendre quadrature.
    """

    order = 1

    def __init__(self, *, trained_betas: Any, num_train_timesteps: int, prediction_type: str, timestep_spacing: str,
                 steps_offset: int) -> None:
        bar = torch.cumprod(1 - torch.as_tensor(trained_betas, dtype=torch.float64), dim=0)
        self._all_sigmas = ((1 - bar) / bar).sqrt().numpy()
        self._steps, self._prediction = num_train_timesteps, prediction_type
        self._spacing, self._offset = timestep_spacing, steps_offset
        self._slopes: list[Tensor] = []
        self._index = 0

    def set_timesteps(self, steps: int) -> None:
        """As many timesteps, from noise to picture."""
        if self._spacing == "linspace":
            times = np.linspace(self._steps - 1, 0, steps)
        elif self._spacing == "trailing":
            times = np.arange(self._steps, 0, -self._steps / steps).round() - 1
        else:
            times = (np.arange(steps) * (self._steps // steps))[::-1] + self._offset
        sigmas = np.interp(times, np.arange(self._steps), self._all_sigmas)
        self.timesteps = torch.tensor(times.copy(), dtype=torch.float32)
        self.sigmas = np.append(sigmas, 0.0)
        self.set_begin_index(0)

    def set_begin_index(self, index: int) -> None:
        """Begin at this timestep (image-to-image)."""
        self._index, self._slopes = index, []

    @property
    def init_noise_sigma(self) -> float:
        """The standard deviation of the first latents."""
        highest = float(self.sigmas[0])
        return math.hypot(highest, 1) if self._spacing == "leading" else highest

    def scale_model_input(self, sample_BCHW: Tensor, timestep: Any) -> Tensor:
        """The latents as the network takes them, of unit variance."""
        return sample_BCHW / math.hypot(float(self.sigmas[self._index]), 1)

    def add_noise(self, latents_BCHW: Tensor, noise_BCHW: Tensor, timesteps: Any) -> Tensor:
        """Latents at the noise level of the step that comes next."""
        return latents_BCHW + noise_BCHW * float(self.sigmas[self._index])

    def step(self, prediction_BCHW: Tensor, timestep: Any, sample_BCHW: Tensor, return_dict: bool = False) -> tuple[Tensor]:
        """One step on."""
        sigma = float(self.sigmas[self._index])
        slope = prediction_BCHW  # epsilon is the slope d x / d sigma
        if self._prediction == "v_prediction":
            clean = sample_BCHW / (sigma**2 + 1) - prediction_BCHW * sigma / math.hypot(sigma, 1)
            slope = (sample_BCHW - clean) / sigma
        self._slopes = [slope, *self._slopes[:3]]
        for weight, past in zip(self._weights(len(self._slopes)), self._slopes):
            sample_BCHW = sample_BCHW + weight * past
        self._index += 1
        return (sample_BCHW,)

    def _weights(self, order: int) -> list[float]:
        known = self.sigmas[self._index - np.arange(order)]
        low, high = self.sigmas[self._index], self.sigmas[self._index + 1]
        nodes, shares = np.polynomial.legendre.leggauss(order)
        at = (high - low) / 2 * nodes + (high + low) / 2
        weights = []
        for j in range(order):
            others = np.delete(known, j)
            basis = np.prod((at[:, None] - others) / (known[j] - others), axis=1)
            weights.append(float((high - low) / 2 * np.sum(shares * basis)))
        return weights
