"""The look that all plots share.

Made for a column of text: 4.8 inches wide, so that 10 points stay readable on a telephone. The
palette is Okabe and Ito's, safe for colour-blind readers; unrefined and refined have the same two
colours everywhere. Figures are plain `matplotlib.figure.Figure`s, without pyplot and its state.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, ParamSpec

from matplotlib import rc_context
from matplotlib.figure import Figure

P = ParamSpec("P")

WIDTH = 4.8  # inches
DPI = 200  # of the PNG files: 960 pixels
UNREFINED, REFINED = "#0072B2", "#D55E00"
# Of methods and critics, by their labels: the same in every figure. What has no colour of its own
# takes those of the cycle that are left, in turn.
COLOURS = {
    "unrefined": UNREFINED,
    "refined": REFINED,
    "Decision Transformer": "#0072B2",
    "Reinformer": "#009E73",
    "BC": "#7F7F7F",
    "IQL policy": "#CC79A7",
    "IQL": "#CC79A7",
    "TD3+BC": "#E69F00",
    "CQL": "#56B4E9",
    "ensemble of 10": "#009E73",
}
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F", "#000000")
INK, FAINT = "#26323d", "#8a97a3"
STYLE: Any = {
    "font.size": 10,
    "font.family": "DejaVu Sans",  # comes with matplotlib
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e3e8ec",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
}


def colours(names: Sequence[str]) -> dict[str, str]:
    """A colour for each of some names, the same wherever a name has one of its own."""
    own = {name: COLOURS[name] for name in names if name in COLOURS}
    rest = [colour for colour in CYCLE if colour not in own.values()] or list(CYCLE)
    others = [name for name in names if name not in own]
    return own | {name: rest[i % len(rest)] for i, name in enumerate(others)}


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Give what `plot` draws the look that all plots share."""

    @wraps(plot)
    def with_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(STYLE):
            return plot(*args, **kwargs)

    return with_style
