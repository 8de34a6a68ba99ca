"""Actions in the units of their box, for whatever answers with actions."""

from __future__ import annotations

from torch import Tensor


class ActionBox:
    """For a module with the box of actions as its buffers `action_low` and `action_high`, [A]."""

    action_low: Tensor
    action_high: Tensor

    def unit_actions(self, actions: Tensor) -> Tensor:
        """Actions [..., A] in units where the box is [-1, 1]."""
        center, half = self._center_and_half_width()
        return (actions - center) / half

    def box_actions(self, actions: Tensor) -> Tensor:
        """The inverse of `unit_actions`."""
        center, half = self._center_and_half_width()
        return center + half * actions

    def _center_and_half_width(self) -> tuple[Tensor, Tensor]:
        return (self.action_high + self.action_low) / 2, (self.action_high - self.action_low) / 2
