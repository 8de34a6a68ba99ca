"""Films where they can be made, and a reason where not."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from gymnasium.envs.registration import EnvSpec

from dtag_fast.evaluation.video import record_video


def spec_of(env: Any) -> EnvSpec:
    return EnvSpec("Counting-v0", entry_point=env)


def test_one_file_an_episode(counting_env: Any, recording_actor: Any, tmp_path: Path) -> None:
    pytest.importorskip("moviepy", reason="the extra video is not installed")
    for _ in range(2):  # the second time over the first one's files
        files = record_video(
            recording_actor(), spec_of(counting_env), tmp_path / "films", episodes=2, seed=1
        )
        assert [file.name for file in files] == ["policy-episode-0.mp4", "policy-episode-1.mp4"]
        assert all(file.stat().st_size > 0 for file in files)


def test_without_moviepy(
    counting_env: Any, recording_actor: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"pip install 'dtag-fast\[video\]'"):
        record_video(recording_actor(), spec_of(counting_env), tmp_path)


def test_without_a_screen(
    counting_env: Any, recording_actor: Any, tmp_path: Path, monkeypatch: Any
) -> None:
    class Blind(counting_env):  # type: ignore[misc]
        def render(self) -> Any:
            raise AttributeError("no OpenGL")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(RuntimeError, match=r"can't be rendered here.*no OpenGL.*MUJOCO_GL=egl"):
        record_video(recording_actor(), spec_of(Blind), tmp_path)
    assert list(tmp_path.iterdir()) == []
