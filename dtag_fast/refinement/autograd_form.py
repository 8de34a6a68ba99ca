"""The form of any module, and which form a critic has."""

from __future__ import annotations

import threading
import weakref

import torch
from torch import Tensor, nn

from dtag_fast.refinement.closed_form import ClosedForm, Pullback
from dtag_fast.refinement.inputs import by_head

_lock = threading.RLock()


class Autograd:
    """The form of any module: its operations and those of autograd, recorded with the rest.

    Holds of the module what tells whether it is the same one, but does not keep it alive.
    """

    algorithm = "autograd"

    def __init__(self, module: nn.Module) -> None:
        self._module = weakref.ref(module)
        self._parts = [(weakref.ref(part), part.training) for part in module.modules()]
        self._names = [name for name, _ in _tensors(module)]

    def is_current(self) -> bool:
        """Whether the module's submodules, and the names of its tensors, are still the same."""
        module = self._module()
        if module is None:
            return False
        parts = list(module.modules())
        return (
            len(parts) == len(self._parts)
            and all(
                known() is part and training == part.training
                for (known, training), part in zip(self._parts, parts, strict=True)
            )
            and [name for name, _ in _tensors(module)] == self._names
        )

    def is_in_same_mode(self) -> bool:
        """Whether its parts are all where they were between training and evaluation, which is what
        a version of the weights does not tell.
        """
        return all(
            (part := known()) is not None and part.training == training
            for known, training in self._parts
        )

    def weights(self, critic: nn.Module) -> list[Tensor]:
        """The module's parameters and buffers."""
        return [tensor.detach() for _, tensor in _tensors(critic)]

    def prepare(self, weights: list[Tensor], observations: Tensor) -> Tensor:
        """The observations [R, S] as they are."""
        return observations

    def value_and_pullback(
        self, weights: list[Tensor], prepared: Tensor, actions: Tensor
    ) -> tuple[Tensor, Pullback]:
        """Q [E, R] of actions [R, A], and autograd's pullback."""
        module = self._module()
        assert module is not None
        with torch.enable_grad():
            points = actions.detach().requires_grad_()
            named = dict(zip(self._names, weights, strict=True))
            q = torch.func.functional_call(module, named, (prepared, points))
            q = by_head(q, len(actions))

        def pullback(cotangent: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(q, points, cotangent.to(q.dtype))
            return gradient

        return q.detach().to(actions.dtype), pullback


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


_forms: weakref.WeakKeyDictionary[nn.Module, Autograd] = weakref.WeakKeyDictionary()


def form_of(critic: nn.Module) -> ClosedForm | Autograd:
    """How the critic's Q and gradient are computed: in closed form where it is known."""
    closed = ClosedForm.of(critic)
    if closed is not None:
        return closed
    with _lock:
        form = _forms.get(critic)
        if form is None or not form.is_current():
            form = _forms[critic] = Autograd(critic)
        return form
