"""Film a policy at work."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path

import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers import RecordVideo

from dtag_fast.evaluation.environments import make_env
from dtag_fast.evaluation.rollout import Actor


def record_video(
    policy: Actor,
    env: str | EnvSpec,
    directory: str | Path,
    episodes: int = 1,
    seed: int = 0,
    *,
    name: str = "policy",
) -> list[Path]:
    """Play episodes one after another and write an MP4 file of each.

    Args:
        policy: see `evaluate`; the first row of its actions is executed.
        env: an id or a specification, as for `make_env`; it has to render to "rgb_array".
        directory: where the files go; made if missing.
        episodes: how many; episode j starts from `reset(seed=seed + j)`.
        seed: of episode 0.
        name: beginning of the files' names.

    Returns:
        The files, `name`-episode-0.mp4 and so on; older ones of these names are overwritten.

    Raises:
        ImportError: moviepy is not installed (extra `video`).
        RuntimeError: the environment can't be rendered on this machine.
    """
    if importlib.util.find_spec("moviepy") is None:
        raise ImportError("a video needs moviepy: pip install 'dtag-fast[video]'")
    folder = Path(directory)
    plain = make_env(env, render_mode="rgb_array")
    try:
        try:
            plain.reset(seed=seed)
            plain.render()
        except Exception as error:  # the drivers raise all sorts of things
            raise RuntimeError(
                f"env: can't be rendered here: {type(error).__name__}: {error}. On a machine "
                f"without a screen set MUJOCO_GL=egl (a GPU) or MUJOCO_GL=osmesa before starting"
            ) from error
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*Overwriting existing videos")
            film = RecordVideo(
                plain,
                str(folder),
                episode_trigger=lambda _: True,
                name_prefix=name,
                disable_logger=True,
            )
        for episode in range(episodes):
            observation, _ = film.reset(seed=seed + episode)
            policy.reset(1)
            reward, over = 0.0, False
            while not over:
                actions = policy.act(observation[np.newaxis], np.array([reward], dtype=np.float32))
                observation, received, terminated, truncated, _ = film.step(actions[0])
                reward, over = float(received), bool(terminated or truncated)
        film.close()  # type: ignore[no-untyped-call]
    finally:
        plain.close()
    return [folder / f"{name}-episode-{episode}.mp4" for episode in range(episodes)]
