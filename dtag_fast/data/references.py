"""Reference scores: the returns that count as 0 and as 100. Needs neither torch nor an environment.

Two families exist and are not comparable: D4RL's constants (d4rl/infos.py, d4rl/pointmaze), made on
old physics and kept as a nominal scale for the *-v5 environments, and those in the metadata of
Minari datasets. Every score therefore carries its source.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Source = Literal["d4rl", "minari"]


@dataclass(frozen=True)
class ReferenceScores:
    """The returns of a random (`minimum`) and an expert policy (`maximum`), and whose they are."""

    source: Source
    minimum: float
    maximum: float

    def __post_init__(self) -> None:
        if self.source not in ("d4rl", "minari"):
            raise ValueError(f"source: expected 'd4rl' or 'minari', got {self.source!r}")
        if not (math.isfinite(self.minimum) and math.isfinite(self.maximum)):
            raise ValueError(f"expected finite scores, got {self.minimum} and {self.maximum}")
        if self.minimum >= self.maximum:
            raise ValueError(f"expected minimum < maximum, got {self.minimum} and {self.maximum}")

    def normalized(self, returns: ArrayLike) -> NDArray[np.float64]:
        """100 * (return - minimum) / (maximum - minimum), same shape as `returns`."""
        values = np.asarray(returns, dtype=np.float64)
        return 100.0 * (values - self.minimum) / (self.maximum - self.minimum)

    def same_scale(self, other: ReferenceScores) -> bool:
        """Whether the numbers agree to the digits in which such constants are published."""
        return math.isclose(self.minimum, other.minimum, rel_tol=1e-6, abs_tol=1e-6) and (
            math.isclose(self.maximum, other.maximum, rel_tol=1e-6, abs_tol=1e-6)
        )

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.source, "minimum": self.minimum, "maximum": self.maximum}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReferenceScores:
        return cls(values["source"], float(values["minimum"]), float(values["maximum"]))


# name: (minimum, maximum, horizon in steps). Farama-Foundation/D4RL: d4rl/infos.py and
# d4rl/pointmaze/__init__.py; v0, v1 and v2 of the Gym tasks share the values.
D4RL: dict[str, tuple[float, float, int | None]] = {
    "hopper": (-20.272305, 3234.3, 1000),
    "halfcheetah": (-280.178953, 12135.0, 1000),
    "walker2d": (1.629008, 4592.3, 1000),
    "ant": (-325.6, 3879.7, 1000),
    "maze2d-umaze": (23.85, 161.86, 300),
    "maze2d-medium": (13.13, 277.39, 600),
    "maze2d-large": (6.7, 273.99, 800),
    "maze2d-umaze-dense": (68.537689, 193.662856, 300),
    "maze2d-medium-dense": (44.264742, 297.455255, 600),
    "maze2d-large-dense": (30.569041, 303.485738, 800),
    "antmaze": (0.0, 1.0, None),
    "kitchen": (0.0, 4.0, None),
    "pen": (96.262799, 3076.833102, None),
    "hammer": (-274.856578, 12794.134825, None),
    "door": (-56.512833, 2880.569309, None),
    "relocate": (-6.425911, 4233.877798, None),
}

# Metadata of the published D4RL/pointmaze/*-v2 datasets (100 episodes in the fixed-goal
# evaluation environment). Not on the scale of D4RL's maze2d.
MINARI: dict[str, tuple[float, float, int | None]] = {
    "pointmaze-open": (7.20, 229.86, 300),
    "pointmaze-open-dense": (70.7329, 229.4267, 300),
    "pointmaze-umaze": (13.49, 218.70, 300),
    "pointmaze-umaze-dense": (59.2523, 223.9689, 300),
    "pointmaze-medium": (17.66, 361.05, 600),
    "pointmaze-medium-dense": (49.2408, 368.8090, 600),
    "pointmaze-large": (3.55, 462.26, 800),
    "pointmaze-large-dense": (27.1659, 481.5345, 800),
}

_MAZE = re.compile(
    r"(?P<family>maze2d|point-?maze)[-/_]?(?P<size>open|umaze|medium|large)(?:[-_]?(?P<dense>dense))?(?![-_]?diverse)"
)
_FIRST_WORD = re.compile(
    r"(?<![a-z0-9])(hopper|halfcheetah|walker2d|antmaze|ant|kitchen|pen|hammer|door|relocate)"
    r"(?![a-z0-9])"
)


def task_name(name: str) -> str | None:
    """The table row for a dataset id or an environment id, None if there is none.

    "dtag/hopper/medium-v0", "hopper_medium-v2" and "Hopper-v5" are all "hopper";
    "PointMaze_UMaze-v3" and "D4RL/pointmaze/umaze-v2" are "pointmaze-umaze".
    """
    text = name.lower()
    maze = _MAZE.search(text)
    if maze:
        family = "maze2d" if maze["family"] == "maze2d" else "pointmaze"
        task = f"{family}-{maze['size']}" + ("-dense" if maze["dense"] else "")
        return task if task in D4RL or task in MINARI else None
    word = _FIRST_WORD.search(text.replace("_", "-"))
    return word[1] if word else None


def d4rl_reference(name: str) -> ReferenceScores | None:
    """D4RL's constants for a dataset id or an environment id, None where D4RL has none."""
    row = D4RL.get(task_name(name) or "")
    return ReferenceScores("d4rl", row[0], row[1]) if row else None


def minari_reference(name: str) -> ReferenceScores | None:
    """The published Minari constants for a PointMaze dataset or environment id, else None."""
    row = MINARI.get(task_name(name) or "")
    return ReferenceScores("minari", row[0], row[1]) if row else None


def horizon(name: str) -> int | None:
    """Steps of an evaluation episode as D4RL and Minari set it, None where the table has none."""
    task = task_name(name) or ""
    row = D4RL.get(task) or MINARI.get(task)
    return row[2] if row else None


def references_for(
    name: str, stored: tuple[float, float] | None = None
) -> tuple[ReferenceScores, ...]:
    """All references that apply: D4RL's constants first, then a dataset's own.

    Args:
        name: id of the evaluation environment, or of the dataset where no environment is known.
        stored: (minimum, maximum) from the dataset's metadata, if it has them. They are called
            "minari" unless they are D4RL's own constants, which are then listed once, as "d4rl".
            Without them the published constants of `minari_reference` stand in.
    """
    found = [reference] if (reference := d4rl_reference(name)) is not None else []
    if stored is not None:
        own: ReferenceScores | None = ReferenceScores("minari", float(stored[0]), float(stored[1]))
    else:
        own = minari_reference(name)
    if own is not None and not any(own.same_scale(other) for other in found):
        found.append(own)
    return tuple(found)
