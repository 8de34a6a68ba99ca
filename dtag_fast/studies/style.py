"""The look that all plots share.

Made for a column of text: 4.8 inches wide, so that 10 points stay readable on a telephone. The
palette is Okabe and Ito's, safe for colour-blind readers; unrefined and refined have the same two
colours everywhere. Figures are plain `matplotlib.figure.Figure`s, without pyplot and its state.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec

from matplotlib import rc_context
from matplotlib.figure import Figure

P = ParamSpec("P")

WIDTH = 4.8  # inches
DPI = 200  # of the PNG files: 960 pixels
UNREFINED, REFINED = "#0072B2", "#D55E00"
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


def styled(plot: Callable[P, Figure]) -> Callable[P, Figure]:
    """Give what `plot` draws the look that all plots share."""

    @wraps(plot)
    def with_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with rc_context(STYLE):
            return plot(*args, **kwargs)

    return with_style
