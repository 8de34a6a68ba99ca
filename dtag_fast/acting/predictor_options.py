"""Token predictors by name, with options, as the command line and studies choose them.

Imports no torch before it is asked for a predictor.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

if TYPE_CHECKING:
    from dtag_fast.acting.token_predictors import TokenPredictor
    from dtag_fast.models.decision_transformer import SequenceModel

PredictorName = Literal[
    "own", "fixed", "discounted", "return-head", "value", "grid", "history-search"
]

# DTR's share of the dataset's best return for each of its targets.
GRID_SHARES = (0.5, 0.75, 1.0, 1.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class PredictorOptions:
    """What supplies the return token. Options of other predictors than the one named are unused."""

    name: PredictorName = "own"
    """own: the model's way. fixed: a target less the rewards. discounted: VDT's, (R - r) / gamma.
    return-head: Reinformer's. value: V of a critic (V-ADT). grid: several targets, picked by Q of a
    critic (DTR, QT). history-search: the length of history that promises most (Elastic DT)."""

    critic: Path | None = None
    """Folder of a critic's run, or one checkpoint (value, grid)."""

    targets: tuple[float, ...] = ()
    """Returns to aim for (grid); without any 0.5, 0.75, 1, 1.5 and 2 times the target return."""

    rule: Literal["max", "softmax"] = "max"
    """The action of highest Q (DTR), or one drawn by softmax(Q / temperature) (QT) (grid)."""

    countdown: Literal["rewards", "linear"] = "rewards"
    """Targets less the rewards received (QT), or falling to 0 over the horizon (DTR) (grid)."""

    horizon: int | None = None
    """Steps of an episode (grid, linear countdown); by default that of the environment."""

    temperature: float = 1.0
    """Of softmax, in units of Q (grid)."""

    seed: int = 0
    """Of softmax (grid)."""

    discount: float = 0.99
    """Gamma (discounted)."""

    scale: float = 1.0
    """Factor of V (value)."""

    stride: int = 2
    """Steps by which histories differ (history-search)."""


def make_predictor(
    options: PredictorOptions,
    model: SequenceModel,
    *,
    target_return: float | None = None,
    horizon: int | None = None,
    critic: Path | None = None,
) -> TokenPredictor:
    """The token predictor that the options name.

    Args:
        options: the name, and what the predictor takes.
        model: that it is for.
        target_return: the policy's, raw; for those that aim for one.
        horizon: of the environment, where the options name none.
        critic: folder of a critic's run, where the options name none.

    Raises:
        ValueError: something that the predictor needs is missing, or does not suit the model.
        CheckpointError: of the critic's checkpoint.
    """
    predictor = _make(options, model, target_return, horizon, critic)
    predictor.check_model(model)
    return predictor


def _make(
    options: PredictorOptions,
    model: SequenceModel,
    target_return: float | None,
    horizon: int | None,
    critic: Path | None,
) -> TokenPredictor:
    from dtag_fast.acting import token_predictors
    from dtag_fast.acting.history_search import HistorySearch
    from dtag_fast.acting.value_predictors import ReturnGrid, ValuePrompt
    from dtag_fast.models.critic import Critic

    name, device = options.name, model.action_low.device
    if name == "own":
        own = token_predictors.own_predictor(model.config.kind, target_return, {})
        return own or _needed("target_return", "a return to aim for", name)
    if name == "return-head":
        return token_predictors.ReturnHead()
    if name == "history-search":
        return HistorySearch(options.stride)
    if name in ("fixed", "discounted"):
        if target_return is None:
            _needed("target_return", "a return to aim for", name)
        if name == "fixed":
            return token_predictors.FixedTarget(target_return)
        return token_predictors.DiscountedCountdown(target_return, options.discount)
    folder = critic if options.critic is None else options.critic
    if folder is None:
        _needed("critic", "the folder of a critic's run", name)
    if name == "value":
        return ValuePrompt.load(folder, options.scale, device)
    targets = options.targets
    if not targets:
        if target_return is None:
            _needed("targets", "returns to aim for", name)
        targets = tuple(share * target_return for share in GRID_SHARES)
    return ReturnGrid(
        Critic.load(folder, device=str(device)),
        targets,
        rule=options.rule,
        countdown=options.countdown,
        horizon=horizon if options.horizon is None else options.horizon,
        temperature=options.temperature,
        seed=options.seed,
    )


def _needed(argument: str, what: str, name: str) -> NoReturn:
    raise ValueError(f"{argument}: needed, {what}, by the token predictor {name!r}; got None")
