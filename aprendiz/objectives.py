"""What the loss is: how latents are noised, what the network is asked for, and how its answer is weighed.

Shapes: B batch, C latent channels, H W latent height and width. Noise schedules are those of DDPM (Ho et al. 2020):
noisy = a x0 + s noise with a^2 + s^2 = 1 and SNR = a^2 / s^2; flows: noisy = (1 - t) x0 + t noise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .data.loader import Batch
    from .families import Base
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
