"""Objectives: noise, targets and weights are those of the papers and of diffusers' schedulers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from aprendiz.data.loader import Batch
from aprendiz.draws import Draws
from aprendiz.families import Base, Family, Source
from aprendiz.objectives import Diffusion, RectifiedFlow, flow_shift, objective, signal_level
from aprendiz.settings import ObjectiveSettings

SCHEDULE = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def base(prediction: str, schedule: dict[str, Any] = SCHEDULE, zero: bool = False) -> Base:
    return Base(family=Family(), source=Source("none", Path(), "folder"), network=nn.Linear(1, 1), vae=None, text_encoders=[],
                tokenizers=[],
                prediction=prediction, schedule=schedule, resolution=64, zero_terminal_snr=zero)


def batch(count: int = 64, mask: torch.Tensor | None = None) -> Batch:
    random = torch.Generator().manual_seed(0)
    shape = (count, 4, 8, 8)
    return Batch(latents_BCHW=torch.randn(shape, generator=random), noise_BCHW=torch.randn(shape, generator=random),
                 offset_BC11=torch.randn(count, 4, 1, 1, generator=random), time_B=torch.rand(count, generator=random),
                 conditioning=None, tokens=None,
                 sizes=(), mask_B1HW=mask, weight_B=torch.ones(count), names=("a.png",) * count, draws=Draws(0), step=0,
                 samples=tuple(range(count)))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_noise_and_targets_are_diffusers(prediction: str, zero: bool) -> None:
    from diffusers import DDIMScheduler
    scheduler = DDIMScheduler(**SCHEDULE, rescale_betas_zero_snr=zero, clip_sample=False)
    seen = batch()
    noisy = objective(base(prediction, zero=zero), ObjectiveSettings()).corrupt(seen)
    expected = scheduler.add_noise(seen.latents_BCHW, seen.noise_BCHW, noisy.timesteps_B)
    assert torch.allclose(noisy.noisy_BCHW, expected, atol=2e-5)
    target = seen.noise_BCHW if prediction == "epsilon" else scheduler.get_velocity(seen.latents_BCHW, seen.noise_BCHW,
                                                                                    noisy.timesteps_B)
    assert torch.allclose(noisy.target_BCHW, target, atol=2e-5)


def test_zero_terminal_snr_ends_in_pure_noise_and_stays_finite_for_v() -> None:
    assert signal_level(SCHEDULE, True)[-1] == 0
    assert signal_level(SCHEDULE, True)[0] == pytest.approx(float(signal_level(SCHEDULE, False)[0]))
    made = objective(base("v", zero=True), ObjectiveSettings(min_snr_gamma=5.0, timestep_min=999))
    noisy = made.corrupt(batch())
    assert bool((noisy.timesteps_B == 999).all())
    assert bool(torch.isfinite(noisy.target_BCHW).all()) and bool(torch.isfinite(noisy.weight_B).all())


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_min_snr_weights_the_same_x0_error_alike(prediction: str) -> None:
    """Hang et al. 2023: the weight on the x0 error is min(SNR, gamma), whatever is predicted."""
    made = Diffusion(base(prediction), ObjectiveSettings(min_snr_gamma=5.0))
    signal = signal_level(SCHEDULE, False)
    snr = signal / (1 - signal)
    as_x0 = made.weight_T.double() * (snr if prediction == "epsilon" else snr + 1)
    assert torch.allclose(as_x0, snr.clamp(max=5.0), rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v"])
def test_min_snr_has_a_weight_where_nothing_but_noise_is_left(prediction: str) -> None:
    made = Diffusion(base(prediction), ObjectiveSettings(min_snr_gamma=5.0, zero_terminal_snr=True))
    assert bool(torch.isfinite(made.weight_T).all())
    assert float(made.weight_T[-1]) == (1 if prediction == "epsilon" else 0)


@pytest.mark.parametrize("schedule", [{"beta_schedule": "squaredcos_cap_v2"}, {"trained_betas": [0.001, 0.002, 0.004]}])
def test_other_noise_schedules_are_diffusers_too(schedule: dict[str, Any]) -> None:
    from diffusers import DDIMScheduler
    signal = signal_level({**SCHEDULE, **schedule}, zero_terminal_snr=False)
    assert torch.allclose(signal.float(), DDIMScheduler(**{**SCHEDULE, **schedule}).alphas_cumprod, atol=1e-6)


def test_timesteps_stay_within_their_bounds_and_reach_both() -> None:
    made = objective(base("epsilon"), ObjectiveSettings(timestep_min=3, timestep_max=5))
    seen = made.corrupt(batch(400)).timesteps_B
    assert (int(seen.min()), int(seen.max())) == (3, 5)


def test_huber_is_squared_near_zero_and_straight_far_away() -> None:
    made = Diffusion(base("epsilon"), ObjectiveSettings(loss="huber", huber_delta=0.5))
    seen = batch(2)
    noisy = made.corrupt(seen)
    near = made.losses(noisy.target_BCHW + 0.1, noisy, seen)
    assert torch.allclose(near, torch.full((2,), 0.01), rtol=1e-3)
    far = made.losses(noisy.target_BCHW + 10, noisy, seen)
    assert torch.allclose(far, torch.full((2,), 2 * 0.5 * (10 - 0.25)), rtol=1e-3)


def test_masked_pixels_do_not_count() -> None:
    mask = torch.ones(2, 1, 8, 8)
    mask[..., :4] = 0
    seen = batch(2, mask)
    made = Diffusion(base("epsilon"), ObjectiveSettings())
    noisy = made.corrupt(seen)
    wrong = noisy.target_BCHW.clone()
    wrong[..., :4] += 100
    assert float(made.losses(wrong, noisy, seen).sum()) == 0
    wrong[..., 4:] += 1
    assert torch.allclose(made.losses(wrong, noisy, seen), torch.full((2,), 0.5))


def test_the_noise_offset_is_one_number_a_channel() -> None:
    seen = batch(2)
    plain = objective(base("epsilon"), ObjectiveSettings()).corrupt(seen).target_BCHW
    moved = objective(base("epsilon"), ObjectiveSettings(noise_offset=0.1)).corrupt(seen).target_BCHW
    assert torch.allclose(moved - plain, 0.1 * seen.offset_BC11.expand_as(plain), atol=1e-6)


def test_flow_is_a_straight_line_from_picture_to_noise() -> None:
    made = objective(base("flow", {"shift": 3.0}), ObjectiveSettings())
    assert isinstance(made, RectifiedFlow)
    seen = batch(400)
    noisy = made.corrupt(seen)
    t = noisy.timesteps_B[:, None, None, None]
    assert torch.allclose(noisy.noisy_BCHW - t * noisy.target_BCHW, seen.latents_BCHW, atol=1e-5)
    # Shifted times: the median 1/2 goes to 3/4.
    assert float(noisy.timesteps_B.median()) == pytest.approx(0.75, abs=0.06)


def test_dynamic_shift_grows_with_the_picture() -> None:
    flux = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "base_image_seq_len": 256,
            "max_image_seq_len": 4096}
    assert flow_shift(flux, 256) == pytest.approx(1.6487, abs=1e-3)
    assert flow_shift(flux, 4096) == pytest.approx(3.1582, abs=1e-3)
