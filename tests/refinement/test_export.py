"""Exported refinement, run by ONNX Runtime and by torch.export, against the reference."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtag_fast
from dtag_fast import Critic, Normalizer, Refiner
from dtag_fast.refinement.export import export_refinement
from dtag_fast.refinement.parity import random_batch, random_critic

# Which torch.export.load of torch 2.11 draws from torch itself.
pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")


def run_onnx(path: Path, observations: Tensor, actions: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (refined,) = session.run(
        ["refined"], {"observations": observations.numpy(), "actions": actions.numpy()}
    )
    return torch.from_numpy(refined)


def run_torch(path: Path, observations: Tensor, actions: Tensor) -> Tensor:
    program: Any = torch.export.load(path)
    refined: Tensor = program.module()(observations, actions)
    return refined


@pytest.mark.parametrize(
    ("critic", "options"),
    [
        ({"normalizer": Normalizer(torch.ones(5), torch.full((5,), 0.5))}, {"steps": 4}),
        (
            {"heads": 3, "activation": "mish", "layer_norm": True},
            {
                "steps": 3,
                "optimizer": "adam",
                "ensemble": "lcb",
                "gradient": "unit",
                "max_distance": 0.2,
                "bounds": ([-0.5, -1.0, -0.4], 0.8),
                "select": "last",
            },
        ),
    ],
    ids=["plain", "everything"],
)
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_it_equals_the_reference_for_any_batch(
    tmp_path: Path, critic: dict[str, Any], options: dict[str, Any], format: Any
) -> None:
    if format == "onnx":
        pytest.importorskip("onnxscript")
    q = random_critic(**critic)
    path = tmp_path / "refine"
    export_refinement(Refiner(q, step_size=0.1, **options), path, format)
    run = run_onnx if format == "onnx" else run_torch
    for batch in (1, 2, 17):
        observations, actions = random_batch(q, batch)
        expected = dtag_fast.reference.refine(q, observations, actions, step_size=0.1, **options)
        assert not torch.equal(expected, actions)
        torch.testing.assert_close(run(path, observations, actions), expected, atol=1e-5, rtol=0)


def test_rows_that_are_not_finite_go_back_as_they_came(tmp_path: Path) -> None:
    critic = random_critic()
    observations, actions = random_batch(critic, 4)
    observations[1, 0] = float("nan")
    export_refinement(Refiner(critic, steps=2), tmp_path / "refine", "torch")
    refined = run_torch(tmp_path / "refine", observations, actions)
    expected = dtag_fast.reference.refine(critic, observations, actions, steps=2)
    torch.testing.assert_close(refined, expected, atol=1e-5, rtol=0)
    assert torch.equal(refined[1], actions[1])


class Other(nn.Module):
    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        return actions.sum(dim=1)


def test_bad_arguments(tmp_path: Path) -> None:
    refiner = Refiner(Critic(4, 2, hidden=(8,)))
    wrong: Any = refiner.critic
    with pytest.raises(TypeError, match=r"refiner: expected a dtag_fast.Refiner, got Critic"):
        export_refinement(wrong, tmp_path / "refine")
    with pytest.raises(TypeError, match=r"refiner: expected one with a dtag_fast.Critic .* Other"):
        export_refinement(Refiner(Other()), tmp_path / "refine")
    unknown: Any = "tflite"
    with pytest.raises(ValueError, match="format: expected one of onnx, torch, got 'tflite'"):
        export_refinement(refiner, tmp_path / "refine", unknown)
    with pytest.raises(ValueError, match=r"path: .*missing is no folder"):
        export_refinement(refiner, tmp_path / "missing" / "refine")
