"""What tests of the graph backend share: a module that is no `Critic`, and the comparison."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import dtag_fast
from dtag_fast import refine
from dtag_fast.refinement import graph

needs_compiler = pytest.mark.skipif(
    graph.unavailable_reason() is not None, reason=str(graph.unavailable_reason())
)


class Attention(nn.Module):
    """Twin heads on attention over observation and action, with LayerNorm."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.observation_dim, self.action_dim = 5, 3
        self.register_buffer("scale", torch.tensor(2.0))
        self.embeddings = nn.ModuleList([nn.Linear(5, 16), nn.Linear(3, 16)])
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(0.5)
        self.heads = nn.Linear(16, 2)

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        pairs = zip(self.embeddings, (observations, actions), strict=True)
        x = torch.stack([embed(part) for embed, part in pairs], dim=1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        q: Tensor = self.heads(self.dropout(self.norm(x).mean(dim=1)))
        return self.scale * q.T


def attention() -> Attention:
    torch.manual_seed(0)
    return Attention().eval()


def assert_equals_reference(
    critic: nn.Module, batch: tuple[Tensor, Tensor], **options: Any
) -> None:
    expected, info = dtag_fast.reference.refine(critic, *batch, return_info=True, **options)
    result, ours = refine(critic, *batch, backend="graph", return_info=True, **options)
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    for name in ("q", "q_initial", "distance"):
        torch.testing.assert_close(getattr(ours, name), getattr(info, name), atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.start, info.start)
    assert torch.equal(ours.dense_steps, info.dense_steps)
