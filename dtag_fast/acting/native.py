"""Acting in native code on the CPU: the model's weights packed, an action in one call.

csrc/acting.h has the algorithm: token embeddings and what the first block makes of them are kept
while the window slides, of the last block only what the action needs is computed, Reinformer's
second pass is one token, and a streaming model's keys and values stay. One thread; float32, in
another order of summation than torch's, so results agree to rounding.

With precision "bf16" the products inside the blocks have weights and inputs rounded to bfloat16 and
sums in float32: half the bytes to read, and twice the speed where the processor multiplies such
numbers itself. Actions then differ from the model's in the third digit or so.
"""

from __future__ import annotations

import importlib
import threading
import weakref
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dtag_fast import build_info
from dtag_fast.acting.context import PredictingContext
from dtag_fast.acting.token_predictors import FixedTarget, ReturnHead, TokenPredictor
from dtag_fast.models.decision_transformer import MODELS, Attention, Block, SequenceModel
from dtag_fast.models.normalizer import Normalizer
from dtag_fast.refinement import RefineInfo, Refiner
from dtag_fast.refinement.cpu import native_options
from dtag_fast.refinement.options import check_word
from dtag_fast.refinement.packing import packed as packed_critic
from dtag_fast.refinement.weights_version import WeightsVersion, weights_version

if TYPE_CHECKING:
    from dtag_fast import _native

Inference = Literal["auto", "native", "torch", "graph"]
Precision = Literal["fp32", "bf16"]
_KNOWN = (Attention, Block, Normalizer, nn.Linear, nn.LayerNorm, nn.Embedding, nn.ModuleList)


def unavailable_reason() -> str | None:
    """Why this machine cannot act in native code, or None."""
    reason = build_info.native_missing_reason() or build_info.isa_error()
    if reason is None and _load().isa() == "scalar":
        reason = "the kernels in use are the scalar ones, which have none for acting"
    return reason


def unsupported_reason(model: SequenceModel) -> str | None:
    """Why this model cannot act in native code on this machine, or None."""
    reason = unavailable_reason()
    if reason is not None:
        return reason
    if type(model) is not MODELS[model.config.kind]:
        return f"it knows {MODELS[model.config.kind].__name__}, got {type(model).__name__}"
    for name, module in model.named_modules():
        if module is model or type(module) in _KNOWN:
            continue
        if name == "final_norm" and type(module) is nn.Identity:
            continue
        return f"it does not know the {type(module).__name__} at {name}"
    for name, tensor in model.state_dict().items():
        if tensor.device.type != "cpu" or tensor.dtype != torch.float32:
            return (
                f"it takes float32 weights on the CPU, and the model's {name} is {tensor.dtype} "
                f"on {tensor.device}"
            )
    return None


def choose_inference(
    inference: Inference, model: SequenceModel, precision: Precision = "fp32"
) -> Literal["native", "torch", "graph"]:
    """What computes: the word itself, or what "auto" becomes for this model.

    Raises:
        ValueError: an unknown word, or bf16 in torch or a graph.
        RuntimeError: native, or bf16, was asked for and cannot be had; and why.
    """
    check_word("inference", inference, Inference)
    check_word("precision", precision, Precision)
    if inference in ("torch", "graph"):
        if precision != "fp32":
            raise ValueError(
                f"precision: {precision} is of native inference, got inference={inference!r}"
            )
        device = model.action_low.device
        if inference == "graph" and device.type != "cuda":
            raise RuntimeError(f"inference: graph needs a model on CUDA, got one on {device}")
        return inference
    reason = unsupported_reason(model)
    if reason is None:
        return "native"
    if inference == "native" or precision != "fp32":
        raise RuntimeError(f"inference: native cannot be had: {reason}")
    return "torch"


class Packing(NamedTuple):
    """A model's weights in the kernels' layouts, and the version of them that was read."""

    weights: _native.PackedTransformer
    version: WeightsVersion


_packings: weakref.WeakKeyDictionary[nn.Module, dict[Precision, Packing]]
_packings = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def packed(model: SequenceModel, precision: Precision) -> Packing:
    """The model's weights as they are now.

    Raises:
        RuntimeError: they are no longer such as native code takes.
    """
    with _lock:
        packings = _packings.setdefault(model, {})
        found = packings.get(precision)
        if found is None or not found.version.is_current():
            reason = unsupported_reason(model)
            if reason is not None:
                raise RuntimeError(
                    f"the policy acts in native code, and the model has changed since it was "
                    f"made: {reason}"
                )
            # The version first: a change while the weights are being read is noticed later.
            version = weights_version(model)
            found = packings[precision] = Packing(_pack(model, precision), version)
        return found


def _pack(model: SequenceModel, precision: Precision) -> _native.PackedTransformer:
    config = model.config
    weights: _native.PackedTransformer = _load().PackedTransformer(
        kind=config.kind,
        observation_dim=model.observation_dim,
        action_dim=model.action_dim,
        window=config.context_length,
        blocks=config.blocks,
        width=config.embedding_dim,
        heads=config.attention_heads,
        max_timestep=config.max_timestep,
        sliding=config.attention == "sliding",
        pre_norm=config.block_norm == "pre",
        relu=config.activation == "relu",
        rtg_scale=config.rtg_scale,
        precision=precision,
        weights={
            name: np.ascontiguousarray(tensor.detach().numpy())
            for name, tensor in model.state_dict().items()
        },
    )
    return weights


class NativeContext(PredictingContext):
    """What `Context` is, with the predictions' own memory in native code.

    Args:
        model: one of which `unsupported_reason` has nothing to say.
        num_envs: B.
        precision: of the weights.
        windows: whether to keep `Context`'s windows, too, for a token predictor that looks at them.
            A streaming model's hold the current step alone.
        acting: for `select`.
    """

    def __init__(
        self,
        model: SequenceModel,
        num_envs: int,
        precision: Precision = "fp32",
        windows: bool = True,
        acting: _native.Acting | None = None,
    ) -> None:
        length = 1 if model.config.attention == "sliding" else model.config.context_length
        super().__init__(num_envs, length, model.observation_dim, model.action_dim)
        self._model, self._precision, self._windows = model, precision, windows
        self._packing = packed(model, precision)
        self.acting = acting or _load().Acting(self._packing.weights, num_envs)

    def refresh(self) -> None:
        """Read the model's weights again if they have changed."""
        current = packed(self._model, self._precision)
        if current is not self._packing:
            self._packing = current
            self.acting.replace_model(current.weights)

    @property
    def version(self) -> WeightsVersion:
        """Of the weights in use."""
        return self._packing.version

    def sync(self) -> None:
        """Learn what whole actions (`whole_action`) have done meanwhile."""
        if not self._windows:
            self.steps[:] = self.acting.steps()
            self._now.copy_(torch.from_numpy(self.steps))
            self.token.copy_(torch.from_numpy(self.acting.tokens()))

    def reset_rows(self, rows: NDArray[np.bool_]) -> None:
        """Begin a new episode in the environments where `rows` [B] is True; others go on."""
        super().reset_rows(rows)
        self.acting.reset(np.flatnonzero(rows).tolist())

    def _like(self, rows: NDArray[np.int64]) -> NativeContext:
        acting = self.acting.select(rows.tolist())
        return NativeContext(self._model, len(rows), self._precision, self._windows, acting)

    def begin_step(self, observations: Tensor) -> None:
        """Move every environment to its next timestep, at which it observed [B, S]."""
        self.refresh()
        if self._windows:
            super().begin_step(observations)
        else:
            self.steps += 1
            self._now += 1
            torch.eq(self._now, 0, out=self.first)
        self.acting.begin_step(_address(observations, self.num_envs, self._model.observation_dim))

    def write_token(self, tokens: Tensor) -> None:
        """Set the current step's return tokens [B], raw."""
        if self._windows:
            super().write_token(tokens)
        else:
            self.token.copy_(tokens)
        self.acting.write_tokens(_address(self.token, self.num_envs))

    def write_actions(self, actions: Tensor) -> None:
        """Store the current step's actions [B, A], for the steps that follow."""
        if self._windows:
            super().write_actions(actions)
        self.acting.write_actions(_address(actions, self.num_envs, self._model.action_dim))

    def predict_returns(self) -> Tensor:
        """The returns-to-go [B], raw, that a Reinformer predicts for the current step."""
        assert self._model.config.kind == "reinformer", "no returns are predicted"
        returns = torch.empty(self.num_envs)
        self.acting.predict_returns(_address(returns, self.num_envs))
        return returns

    def predict_actions(self) -> Tensor:
        """The mean actions [B, A] for the current step, given the return token written last."""
        actions = torch.empty(self.num_envs, self._model.action_dim)
        self.acting.predict_actions(_address(actions, self.num_envs, self._model.action_dim))
        return actions


def acts_whole(predictor: TokenPredictor, refiner: Refiner | None) -> bool:
    """Whether native code has all of an action: the token, the model and refinement."""
    return type(predictor) in (FixedTarget, ReturnHead) and (
        refiner is None or refiner.backend == "cpu"
    )


def whole_action(
    context: NativeContext,
    predictor: TokenPredictor,
    refiner: Refiner | None,
    keep_refined: bool,
) -> _native.ActCall:
    """`Policy.act` for plain arrays in one native call, with the weights as they are now."""
    context.refresh()
    critic: Any = None
    options: Any = None
    versions = [context.version]
    if refiner is not None:
        critic, version = packed_critic("cpu", refiner.critic, refiner.execution.precision)
        options = native_options(refiner.options, critic.action_dim)
        versions.append(version)
    call: _native.ActCall = _load().ActCall(
        context.acting,
        target_return=predictor.target_return if isinstance(predictor, FixedTarget) else None,
        critic=critic,
        options=options,
        algorithm="auto" if refiner is None else refiner.execution.algorithm,
        threads=_threads(refiner),
        keep_refined=keep_refined,
        versions=versions,
    )
    return call


def _threads(refiner: Refiner | None) -> int:
    if refiner is None or refiner.execution.threads is None:
        return torch.get_num_threads()
    return refiner.execution.threads


def refine_info(acting: _native.Acting) -> RefineInfo:
    """What refinement did to each row in the last whole action."""
    values: dict[str, Any] = {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in acting.report().items()
    }
    return RefineInfo(**values)


def _load() -> ModuleType:
    """The native module; only now, because an installation may do without it."""
    return importlib.import_module("dtag_fast._native")


def _address(tensor: Tensor, *shape: int) -> int:
    """Where the numbers lie; the kernels read and write as many as the shape says."""
    if (
        tensor.shape != shape
        or tensor.dtype != torch.float32
        or tensor.device.type != "cpu"
        or not tensor.is_contiguous()
    ):
        raise ValueError(
            f"expected a contiguous float32 tensor {list(shape)} on the CPU, got "
            f"{list(tensor.shape)} of {tensor.dtype} on {tensor.device}"
        )
    return tensor.data_ptr()
