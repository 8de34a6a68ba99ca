"""`dtag evaluate`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dtag_fast.acting.predictor_options import PredictorOptions
from dtag_fast.acting.refinement_options import RefinementOptions

if TYPE_CHECKING:
    from dtag_fast.acting.policy import Policy
    from dtag_fast.data.trajectories import DatasetInfo
    from dtag_fast.evaluation.result import Evaluation

ROWS_FILE = "episodes.jsonl"
SUMMARY_FILE = "summary.json"


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Act in the environment and score: last and best checkpoint, unrefined and refined.

    Every policy meets the same starts: episode j begins from seed --seed + j.
    """

    policy: Path
    """Folder of a policy's run, or one checkpoint."""

    critic: Path | None = None
    """Folder of a critic's run, or one checkpoint: refine with it."""

    env: str | None = None
    """Gymnasium id; by default the one that the policy's dataset names."""

    checkpoint: Literal["last", "best", "both"] = "both"
    """Of the policy's run. Reported separately, never the better of the two."""

    compare: bool = False
    """With --critic: also evaluate unrefined, and pair the two by seed."""

    episodes: int = 20
    """Of each policy."""

    seed: int = 0
    """Of the first episode."""

    num_envs: int = 16
    """Environments stepped together."""

    vectorization: Literal["sync", "async"] = "sync"
    """In this process, or a process each."""

    target_return: float | None = None
    """Return to ask for (Decision Transformer); by default that of its training."""

    out: Path | None = None
    """Folder for episodes.jsonl, a row an episode, and summary.json."""

    video: Path | None = None
    """Folder for a film of the first episode of each policy (extra `video`)."""

    device: str = "cpu"
    """Where the model and the critic run."""

    inference: Literal["auto", "native", "torch", "graph"] = "auto"
    """What computes an action: compiled code (CPU), torch, a captured graph (CUDA); auto: the first
    where it can be had, else torch."""

    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the model's weights; bf16 with compiled code only."""

    refinement: RefinementOptions = field(default_factory=RefinementOptions)
    """Refinement."""

    predictor: PredictorOptions = field(default_factory=PredictorOptions)
    """What supplies the return token."""

    def run(self) -> None:
        """Evaluate, print the table, write what --out and --video ask for."""
        if self.compare and self.critic is None:
            raise ValueError("--compare: needs --critic, the critic to refine with")
        if self.out is not None and (self.out / ROWS_FILE).exists():
            raise ValueError(
                f"--out: {self.out} already holds an evaluation; choose another folder"
            )
        from rich.console import Console

        from dtag_fast.evaluation.result import compare
        from dtag_fast.evaluation.table import evaluation_table, with_interval

        console = Console()
        # All are loaded before the first one acts: a wrong path is told at once.
        variants = [
            (checkpoint, refined, self.load(checkpoint, refined))
            for checkpoint in self._checkpoints()
            for refined in self._variants()
        ]
        results: dict[str, Evaluation] = {}
        for checkpoint, refined, loaded in variants:
            name = f"{checkpoint}, {'refined' if refined else 'unrefined'}"
            results[name] = self._evaluate(name, checkpoint, refined, *loaded)
        console.print(evaluation_table(results))
        differences = {}
        if self.compare:
            for checkpoint in self._checkpoints():
                pair = compare(
                    results[f"{checkpoint}, unrefined"], results[f"{checkpoint}, refined"]
                )
                differences[checkpoint] = pair.to_dict()
                console.print(
                    f"{checkpoint}: refinement changes the return by "
                    f"{with_interval(pair.mean, pair.interval)}, paired by seed; "
                    f"{pair.wins} better, {pair.losses} worse"
                )
        if self.out is not None:
            from dtag_fast.checkpoint import write_json

            summary: dict[str, Any] = {name: result.to_dict() for name, result in results.items()}
            settings = {key: _plain(value) for key, value in asdict(self).items()}
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(
                self.out / SUMMARY_FILE,
                {"settings": settings, "evaluations": summary, "differences": differences},
            )
            console.print(f"Rows and summary in {self.out}", markup=False, soft_wrap=True)

    def _variants(self) -> tuple[bool, ...]:
        if self.critic is None:
            return (False,)
        return (False, True) if self.compare else (True,)

    def _checkpoints(self) -> tuple[Literal["last", "best"], ...]:
        if self.checkpoint != "both":
            return (self.checkpoint,)
        from dtag_fast.checkpoint import pointed

        # A run without evaluations has no best checkpoint; a checkpoint's folder is one alone.
        return ("last", "best") if pointed(self.policy, "best") is not None else ("last",)

    def _evaluate(
        self,
        name: str,
        checkpoint: Literal["last", "best"],
        refined: bool,
        policy: Policy,
        env: str,
        info: DatasetInfo,
    ) -> Evaluation:
        from dtag_fast.evaluation.rollout import evaluate
        from dtag_fast.evaluation.video import record_video

        rows = None
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            rows = self.out / ROWS_FILE
        if self.video is not None:
            label = name.replace(", ", "-")
            record_video(policy, env, self.video, 1, self.seed, name=label)
        return evaluate(
            policy,
            env,
            self.episodes,
            self.seed,
            num_envs=min(self.num_envs, self.episodes),
            vectorization=self.vectorization,
            references=info.references if self.env is None else (),
            rows=rows,
            notes={"policy": str(self.policy), "checkpoint": checkpoint, "refined": refined},
            progress=True,
        )

    def load(
        self, checkpoint: Literal["last", "best"], refined: bool
    ) -> tuple[Policy, str, DatasetInfo]:
        """The policy, the environment to act in, and what is known of the policy's dataset."""
        from dtag_fast.checkpoint import read_state, resolve
        from dtag_fast.data.trajectories import DatasetInfo
        from dtag_fast.models.critic import Critic

        source = resolve(self.policy, checkpoint)
        state = read_state(source, kind="policy")
        info = DatasetInfo.from_dict(state["dataset"])
        env = self.env if self.env is not None else info.env_spec
        if env is None:
            raise ValueError(f"--env: needed, the dataset {info.id} names no environment")
        policy = self._load_policy(source, state["config"], info)
        if refined:
            assert self.critic is not None
            critic = Critic.load(self.critic, device=self.device)
            policy = policy.with_refinement(critic, **asdict(self.refinement))
        return policy, env, info

    def _load_policy(self, source: Path, config: Mapping[str, Any], info: DatasetInfo) -> Policy:
        from dtag_fast.acting.policy import Policy
        from dtag_fast.acting.predictor_options import make_predictor
        from dtag_fast.training.sequence import load_policy_model

        if self.predictor.name == "own":
            return Policy.load(
                source,
                target_return=self.target_return,
                device=self.device,
                inference=self.inference,
                precision=self.precision,
            )
        model, _ = load_policy_model(source, device=self.device)
        target = config["target_return"] if self.target_return is None else self.target_return
        predictor = make_predictor(
            self.predictor,
            model,
            target_return=target,
            horizon=info.horizon,
            critic=self.critic,
        )
        return Policy(model, predictor, inference=self.inference, precision=self.precision)


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(inner) for name, inner in value.items()}
    return str(value) if isinstance(value, Path) else value
