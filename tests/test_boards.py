"""TensorBoard and Weights & Biases get what the run's events tell."""

from __future__ import annotations

from pathlib import Path

from lessons import losses, pictures, teach


def test_tensorboard_holds_the_losses_of_the_events(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    run = teach(tmp_path / "out", pictures(tmp_path / "red"), tensorboard=True)
    written = EventAccumulator(str(run.folder / "tensorboard")).Reload()
    assert [round(scalar.value, 6) for scalar in written.Scalars("step/loss")] == [round(loss, 6) for loss in losses(run)]
    assert [image.step for image in written.Images("sample/0")] == [0, 4]


def test_weights_and_biases_logs_offline_into_the_run(tmp_path: Path) -> None:
    run = teach(tmp_path / "out", pictures(tmp_path / "red"), wandb=True)
    [log] = (run.folder / "wandb").glob("offline-run-*/*.wandb")
    content = log.read_bytes()
    assert b"step/loss" in content
    assert str(tmp_path).encode() not in content
