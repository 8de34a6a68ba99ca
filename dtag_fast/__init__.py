"""Decision Transformers whose actions a critic improves at acting time.

The names below are the public interface. They are loaded when first used, so that importing the
package is quick and `refine` needs nothing but torch and numpy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dtag_fast.acting.policy import Policy as Policy
    from dtag_fast.data.trajectories import Trajectories as Trajectories
    from dtag_fast.evaluation.result import Evaluation as Evaluation
    from dtag_fast.evaluation.rollout import evaluate as evaluate
    from dtag_fast.models.config import ModelConfig as ModelConfig
    from dtag_fast.models.critic import Critic as Critic
    from dtag_fast.models.normalizer import Normalizer as Normalizer
    from dtag_fast.refinement import RefineInfo as RefineInfo
    from dtag_fast.refinement import Refiner as Refiner
    from dtag_fast.refinement import reference as reference
    from dtag_fast.refinement import refine as refine
    from dtag_fast.training.config import CriticConfig as CriticConfig
    from dtag_fast.training.config import PolicyConfig as PolicyConfig
    from dtag_fast.training.critic import train_critic as train_critic
    from dtag_fast.training.sequence import train_policy as train_policy
    from dtag_fast.training.together import train_critics as train_critics

_HOME = {
    "Critic": "dtag_fast.models.critic",
    "CriticConfig": "dtag_fast.training.config",
    "Evaluation": "dtag_fast.evaluation.result",
    "ModelConfig": "dtag_fast.models.config",
    "Normalizer": "dtag_fast.models.normalizer",
    "Policy": "dtag_fast.acting.policy",
    "PolicyConfig": "dtag_fast.training.config",
    "RefineInfo": "dtag_fast.refinement",
    "Refiner": "dtag_fast.refinement",
    "Trajectories": "dtag_fast.data.trajectories",
    "evaluate": "dtag_fast.evaluation.rollout",
    "refine": "dtag_fast.refinement",
    "train_critic": "dtag_fast.training.critic",
    "train_critics": "dtag_fast.training.together",
    "train_policy": "dtag_fast.training.sequence",
}

__all__ = [*_HOME, "__version__", "reference"]


def __getattr__(name: str) -> Any:
    if name == "reference":
        value: Any = importlib.import_module("dtag_fast.refinement.reference")
    elif name in _HOME:
        value = getattr(importlib.import_module(_HOME[name]), name)
    else:
        raise AttributeError(f"module 'dtag_fast' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
