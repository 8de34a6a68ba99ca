"""Published scores to print beside a study's own, with what they were measured on.

Second-hand copies are said to be so. None of it was measured here, and none of it is on data that
this package makes.
"""

from __future__ import annotations

from dtag_fast.studies.report import Item, Table, Text

CAVEAT = (
    "D4RL scores on D4RL's own data (v2; Maze2d v1) and old environments. They can be set beside "
    "rows on data imported with `dtag data import-d4rl`, and beside no others: data made or "
    "collected here, and Minari's, are other data on other scales, whatever their names. CORL "
    "reports the last and the best checkpoint of a run apart; papers mostly one of them, without "
    "saying which."
)
_GYM = [
    f"{env}-{tier}" for tier in ("m", "m-r", "m-e") for env in ("halfcheetah", "hopper", "walker2d")
]

# In the order of _GYM, then the sum. Sources: IQL, TD3+BC, CQL, BC and DT columns as collected in
# jannerm/diffuser (plotting/locomotion_scores.py); CORL from its README.
_GYM_SCORES: dict[str, tuple[float | None, ...]] = {
    "BC": (42.6, 52.9, 75.3, 36.6, 18.1, 26.0, 55.2, 52.5, 107.5, 466.7),
    "DT, its paper": (42.6, 67.6, 74.0, 36.6, 82.7, 66.6, 86.8, 107.6, 108.1, 672.6),
    "DT, CORL last": (42.20, 65.10, 67.63, 38.91, 81.77, 59.86, 91.55, 110.44, 107.11, 664.6),
    "DT, CORL best": (42.73, 69.42, 74.70, 40.31, 88.74, 68.22, 93.40, 111.18, 108.71, 697.4),
    "IQL, its paper": (47.4, 66.3, 78.3, 44.2, 94.7, 73.9, 86.7, 91.5, 109.6, 692.6),
    "IQL, CORL last": (48.31, 67.53, 80.91, 44.46, 97.43, 82.15, 94.74, 107.42, 111.72, 734.7),
    "IQL, CORL best": (48.84, 80.46, 87.58, 45.35, 102.69, 89.94, 95.38, 113.18, 113.06, 776.5),
    "Reinformer + AG, the paper": (*(None,) * 9, 757.8),
}
_MAZE_SCORES: dict[str, tuple[float | None, ...]] = {
    "DT, CORL last": (18.08, 31.71, 35.66, 85.5),
    "DT, CORL best": (63.83, 68.14, 50.25, 182.2),
    "IQL, CORL last": (42.11, 34.85, 61.72, 138.7),
    "IQL, CORL best": (50.92, 122.69, 162.25, 335.9),
    "TD3+BC, CORL last": (29.41, 59.45, 97.10, 186.0),
    "Reinformer + AG, the paper": (None, None, None, 193.9),
}


def _table(columns: list[str], scores: dict[str, tuple[float | None, ...]]) -> Table:
    return Table(
        ["published", *columns, "sum"], [[name, *values] for name, values in scores.items()]
    )


def published(name: str) -> list[Item]:
    """The table of that name, "gym" or "maze2d", and what to keep in mind."""
    found = {
        "gym": lambda: _table(_GYM, _GYM_SCORES),
        "maze2d": lambda: _table(["umaze", "medium", "large"], _MAZE_SCORES),
    }
    if name not in found:
        raise ValueError(f"name: expected one of {', '.join(found)}, got {name!r}")
    return [Text(CAVEAT), found[name]()]
