"""The critic's landscape and the refinement paths on it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtag_fast.models.critic import Critic
from dtag_fast.refinement import reference
from dtag_fast.studies.landscape import critic_landscape, refinement_paths
from dtag_fast.studies.style import DPI, REFINED, WIDTH

S, A = 4, 3
STARTS = np.array([[0.1, -0.2, 0.3], [-0.9, 0.9, 0.0]])


def critic() -> Critic:
    torch.manual_seed(0)
    return Critic(S, A, (16, 16), activation="tanh")


class Hill(nn.Module):
    """Highest at `top`, whatever the observation."""

    def __init__(self, top: list[float]) -> None:
        super().__init__()
        self.register_buffer("top", torch.tensor(top))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        top = self.get_buffer("top")
        return -(actions - top).square().sum(dim=1)


@pytest.mark.parametrize(
    "options",
    [{}, {"optimizer": "adam"}, {"max_distance": 0.05}, {"gradient": "unit", "ensemble": "mean"}],
    ids=["sgd", "adam", "ball", "unit"],
)
def test_paths_are_what_refine_walks(options: dict[str, Any]) -> None:
    observation = np.linspace(-1, 1, S)
    paths = refinement_paths(critic(), observation, STARTS, steps=6, step_size=0.2, **options)
    assert [path.shape for path in paths] == [(7, A)] * 2
    last = reference.refine(
        critic(),
        np.tile(observation, (2, 1)).astype(np.float32),
        STARTS.astype(np.float32),
        steps=6,
        step_size=0.2,
        select="last",
        **options,
    )
    np.testing.assert_array_equal([path[-1] for path in paths], last)
    np.testing.assert_allclose([path[0] for path in paths], STARTS, atol=1e-7)
    assert not np.allclose(paths[0][1], paths[0][0], atol=1e-4)
    if "max_distance" in options:
        moved = np.linalg.norm(paths[0] - paths[0][0], axis=1)
        assert moved.max() <= 0.05 + 1e-6


def test_landscape_shows_q_and_marks_the_best_candidate() -> None:
    top = [0.5, 0.25, 0.0]
    # It steps over the top: the best candidate is the second one, not the last.
    path = np.array([[0.0, 0.25, 0.9], [0.4, 0.25, 0.0], [1.0, 0.25, 0.0]])
    figure = critic_landscape(
        Hill(top), np.zeros(S), [path], dims=(0, 2), bounds=(-1.0, [1.0, 1.0, 2.0]), resolution=21
    )
    axes: Any = figure.get_axes()[0]
    assert axes.get_xlim() == (-1, 1)
    assert axes.get_ylim() == (-1, 2)
    np.testing.assert_allclose(axes.lines[0].get_xydata(), path[:, [0, 2]])
    marks = {line.get_marker(): line.get_xydata().tolist() for line in axes.lines}
    assert marks["o"] == [[0.0, 0.9]]
    assert marks["*"] == [[0.4, 0.0]]
    assert axes.lines[0].get_color() == REFINED
    assert axes.get_xlabel() == "action[0]"

    # The innermost contour encloses the top of the hill.
    filled = axes.collections[0]
    highest = [part.get_extents() for part in filled.get_paths() if part.vertices.size][-1]
    assert highest.x0 < 0.5 < highest.x1
    assert highest.y0 < 0.0 < highest.y1

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    width, height = (int.from_bytes(buffer.getvalue()[i : i + 4], "big") for i in (16, 20))
    assert (width, height) == (WIDTH * DPI, 4.5 * DPI)


def test_other_dimensions_are_held_at_the_first_start() -> None:
    seen: list[Tensor] = []

    class Watched(Hill):
        def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
            seen.append(actions)
            return super().forward(observations, actions)

    critic_landscape(
        Watched([0.0, 0.0, 0.0]), np.zeros(S), [STARTS[:1], STARTS[1:]], dims=(2, 0), resolution=5
    )
    grid = next(actions for actions in seen if len(actions) == 25)
    assert set(grid[:, 1].tolist()) == {float(np.float32(-0.2))}
    assert len(set(grid[:, 0].tolist())) == len(set(grid[:, 2].tolist())) == 5


def test_flat_critic() -> None:
    flat = critic()
    for parameter in flat.parameters():
        nn.init.zeros_(parameter)
    figure = critic_landscape(flat, np.zeros(S), [STARTS], resolution=5)
    figure.savefig(io.BytesIO(), format="png")


@pytest.mark.parametrize(
    ("paths", "dims", "message"),
    [
        ([], (0, 1), r"paths: expected at least one"),
        ([np.zeros(A)], (0, 1), r"each \[n \+ 1, A\], got shapes \[\[3\]\]"),
        ([STARTS], (0, 3), r"dims: expected two of the 3 action dimensions, got \(0, 3\)"),
        ([STARTS], (1, 1), r"dims: expected two"),
        ([STARTS[:, :1]], (0, 1), r"dims: expected two of the 1"),
    ],
)
def test_refuses(paths: list[np.ndarray], dims: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        critic_landscape(critic(), np.zeros(S), paths, dims=dims)


def test_critic_that_is_never_finite() -> None:
    with pytest.raises(ValueError, match="finite Q"):
        critic_landscape(Hill([np.nan, 0.0, 0.0]), np.zeros(S), [STARTS], resolution=5)
