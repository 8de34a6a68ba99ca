"""Refinement of a `Critic` as a file that other runtimes run: ONNX, or a program of torch.export.

The graph is the closed form's (closed_form.py, loop.py), all n + 1 steps unrolled.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from dtag_fast.models.critic import Critic
from dtag_fast.refinement import Refiner
from dtag_fast.refinement.closed_form import ClosedForm
from dtag_fast.refinement.loop import Step, numbers, refine
from dtag_fast.refinement.options import RefineOptions, check_word

ExportFormat = Literal["onnx", "torch"]


def export_refinement(refiner: Refiner, path: str | Path, format: ExportFormat = "onnx") -> None:
    """Write what a Refiner does to a file, with its options and the critic's weights as they are.

    Inputs `observations` [B, S] and `actions` [B, A] and output `refined` [B, A], float32, for any
    B of 1 or more.

    Args:
        refiner: with a `dtag_fast.Critic` in float32. Its backend and how that executes are of no
            account here.
        path: the file to write.
        format: "onnx", or "torch" for `torch.export.load`.

    Raises:
        TypeError, ValueError: an argument that does not fit.
        ImportError: "onnx" without the packages onnx and onnxscript.
    """
    check_word("format", format, ExportFormat)
    if not Path(path).parent.is_dir():
        raise ValueError(f"path: {Path(path).parent} is no folder")
    if not isinstance(refiner, Refiner):
        raise TypeError(f"refiner: expected a dtag_fast.Refiner, got {type(refiner).__name__}")
    critic, form = refiner.critic, ClosedForm.of(refiner.critic)
    if form is None or not isinstance(critic, Critic):
        raise TypeError(
            f"refiner: expected one with a dtag_fast.Critic in float32, got one with "
            f"{type(critic).__name__}"
        )
    require_onnx(format)
    module = RefineModule(form, critic, refiner.options).eval()
    device = critic.weights[0].device
    # Two rows: with one, torch would take the batch for a constant.
    examples = (
        torch.zeros(2, critic.observation_dim, device=device),
        torch.zeros(2, critic.action_dim, device=device),
    )
    batch = torch.export.Dim("batch", min=1)
    shapes = {"observations": {0: batch}, "actions": {0: batch}}
    with torch.no_grad(), quiet():
        program = torch.export.export(module, examples, dynamic_shapes=shapes)
        save(program, path, format, ["observations", "actions"], ["refined"], shapes)


class RefineModule(nn.Module):
    """Refinement as a module: observations [B, S] and actions [B, A] to refined actions [B, A].

    Its buffers are copies of the critic's weights.
    """

    def __init__(self, form: ClosedForm, critic: Critic, options: RefineOptions) -> None:
        super().__init__()
        weights = form.weights(critic)
        for i, weight in enumerate(weights):
            self.register_buffer(f"weight_{i}", weight.clone())
        steps = numbers(options, critic.action_dim)
        self.register_buffer("low", steps[0].low.to(weights[0].device))
        self.register_buffer("high", steps[0].high.to(weights[0].device))
        self._count = len(weights)
        self._step, self._options, self._numbers = Step.of(form, options), options, steps

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        weights = [self.get_buffer(f"weight_{i}") for i in range(self._count)]
        box = {"low": self.get_buffer("low"), "high": self.get_buffer("high")}
        steps = [each._replace(**box) for each in self._numbers]
        return refine(
            self._step,
            self._step,
            weights,
            observations,
            actions.unsqueeze(1),
            self._options,
            steps,
        ).actions


def require_onnx(format: ExportFormat) -> None:
    """ImportError where the format needs packages that are not there."""
    if format == "onnx":
        for package in ("onnx", "onnxscript"):
            if importlib.util.find_spec(package) is None:
                raise ImportError(
                    f"format: 'onnx' needs the package {package}; pip install 'dtag-fast[export]'"
                )


def save(
    program: torch.export.ExportedProgram,
    path: str | Path,
    format: ExportFormat,
    inputs: list[str],
    outputs: list[str],
    dynamic_shapes: Any = None,
) -> None:
    """Write the program, its inputs and outputs by these names."""
    with quiet():
        if format == "torch":
            torch.export.save(program, path)
            return
        torch.onnx.export(
            program,
            (),
            path,
            input_names=inputs,
            output_names=outputs,
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's and onnxscript's own code has to say about itself."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
