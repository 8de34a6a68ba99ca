"""Every setting is an option, and presets are the defaults of the others."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Iterator
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest

from dtag_fast import reference
from dtag_fast.acting.policy import Policy
from dtag_fast.acting.refinement_options import RefinementOptions
from dtag_fast.cli import main
from dtag_fast.commands.demo import Demo
from dtag_fast.commands.evaluate import Evaluate
from dtag_fast.commands.parse import parse
from dtag_fast.commands.train import TrainCritic, TrainPolicy
from dtag_fast.refinement import Refiner
from dtag_fast.training.config import (
    CRITIC_PAPERS,
    POLICY_PAPERS,
    PRESET_ENVS,
    CriticConfig,
    PolicyConfig,
    critic_preset,
    policy_preset,
)

NEEDED = ["--data", "toy", "--out", "runs/a"]


def leaves(config_type: Any, prefix: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The fields of a dataclass and of those inside it, as paths, with their types."""
    hints = get_type_hints(config_type)
    for field in dataclasses.fields(config_type):
        if dataclasses.is_dataclass(hints[field.name]):
            yield from leaves(hints[field.name], (*prefix, field.name))
        else:
            yield (*prefix, field.name), hints[field.name]


def look_up(config: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        config = getattr(config, name)
    return config


def another(hint: Any, default: Any) -> Any:
    """A valid value of that type other than the default."""
    options = get_args(hint)
    if NoneType in options:
        (hint,) = set(options) - {NoneType}
    if get_origin(hint) is Literal:
        return next(word for word in get_args(hint) if word != default)
    if hint is bool:
        return not default
    if hint is int:
        return 2 * default if default else 3
    if hint is float:
        return default / 2 if default else 0.5
    if get_origin(hint) is tuple:
        return (7, 5)
    if hint is str:
        return "cuda:1"
    assert hint is Path, f"no value for {hint}"
    return Path("elsewhere")


def as_option(path: tuple[str, ...], value: Any) -> list[str]:
    name = ".".join(path).replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    values = value if isinstance(value, tuple) else (value,)
    return [f"--{name}", *map(str, values)]


def cases() -> Iterator[Any]:
    for command, needed, config_type, holder in (
        (TrainPolicy, NEEDED, PolicyConfig, ("config",)),
        (TrainCritic, NEEDED, CriticConfig, ("config",)),
        (Evaluate, ["--policy", "runs/a"], Evaluate, ()),
        (Demo, [], Demo, ()),
    ):
        for path, hint in leaves(config_type):
            name = f"{command.__name__}-{'.'.join(path)}"
            yield pytest.param(command, needed, holder, path, hint, id=name)


@pytest.mark.parametrize(("command", "needed", "holder", "path", "hint"), list(cases()))
def test_every_field_is_an_option(
    command: Any, needed: list[str], holder: tuple[str, ...], path: tuple[str, ...], hint: Any
) -> None:
    plain = parse(command, "dtag", needed)
    default = look_up(look_up(plain, holder), path)
    value = another(hint, default)
    assert value != default
    given = parse(command, "dtag", [*needed, *as_option(path, value)])
    assert look_up(look_up(given, holder), path) == value
    # And nothing else became different.
    others = [p for p, _ in leaves(type(look_up(plain, holder))) if p != path]
    for other in others:
        assert look_up(look_up(given, holder), other) == look_up(look_up(plain, holder), other)


def test_the_options_of_the_commands_themselves() -> None:
    command = parse(TrainPolicy, "dtag", ["--data", "a", "--out", "b", "--resume", "--maze", "off"])
    assert (command.data, command.out, command.resume, command.maze) == (
        "a",
        Path("b"),
        True,
        "off",
    )
    assert not parse(TrainPolicy, "dtag", NEEDED).resume


# --- refinement: what `refine` takes is what the command offers ---


def test_refinement_has_exactly_refines_options() -> None:
    refiner = inspect.signature(Refiner.__init__).parameters
    by_api = {name: p.default for name, p in refiner.items() if name not in ("self", "critic")}
    # The box is the policy's own, and the table always reports.
    del by_api["bounds"], by_api["return_info"]
    # A policy refines as is recommended, the operator as the paper has it.
    of_policy = inspect.signature(Policy.with_refinement).parameters
    named = ("steps", "step_size", "gradient", "context_action")
    by_policy = {name: of_policy[name].default for name in named}
    by_command = {field.name: field.default for field in dataclasses.fields(RefinementOptions)}
    assert by_command == {**by_api, **by_policy}


def test_refinement_offers_exactly_refines_words() -> None:
    offered = get_type_hints(RefinementOptions)
    taken = get_type_hints(Refiner.__init__)
    for name in offered:
        if get_origin(offered[name]) is Literal and name in taken:
            assert set(get_args(offered[name])) == set(get_args(taken[name])), name


def test_the_reference_takes_the_same_options() -> None:
    specified = inspect.signature(reference.refine).parameters
    built = inspect.signature(Refiner.__init__).parameters
    arrays = {"critic", "observations", "actions"}
    options = {n: p.default for n, p in specified.items() if n not in arrays}
    own = {"self", "critic", "backend", "algorithm", "precision", "threads"}
    assert options == {n: p.default for n, p in built.items() if n not in own}


# --- presets ---


@pytest.mark.parametrize(("kind", "env"), list(itertools.product(POLICY_PAPERS, PRESET_ENVS)))
def test_a_policy_preset_sets_the_published_values(kind: Any, env: str) -> None:
    command = parse(TrainPolicy, "dtag", [*NEEDED, "--preset", f"{kind}-{env}"])
    assert command.config == policy_preset(kind, env)
    assert command.preset == f"{kind}-{env}"


@pytest.mark.parametrize(("paper", "env"), list(itertools.product(CRITIC_PAPERS, PRESET_ENVS)))
def test_a_critic_preset_sets_the_published_values(paper: Any, env: str) -> None:
    command = parse(TrainCritic, "dtag", [*NEEDED, "--preset", f"{paper}-{env}"])
    assert command.config == critic_preset(paper, env)
    assert command.preset == f"{paper}-{env}"


def test_a_policy_preset_without_an_environment_asks_for_no_return() -> None:
    command = parse(TrainPolicy, "dtag", [*NEEDED, "--preset", "dt"])
    assert command.config.target_return is None
    assert command.config.model == policy_preset("dt", "hopper").model
    assert parse(TrainPolicy, "dtag", NEEDED).config == policy_preset("reinformer", "hopper")
    assert parse(TrainCritic, "dtag", NEEDED).config == critic_preset("iql", "halfcheetah")
    assert parse(TrainCritic, "dtag", [*NEEDED, "--preset=corl"]).config == critic_preset(
        "corl", "halfcheetah"
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "dt-halfcheetah", "--steps", "7", "--model.blocks", "2"],
        ["--preset=dt-halfcheetah", "--steps=7", "--model.blocks=2"],
        ["--steps", "7", "--model.blocks", "2", "--preset", "dt-halfcheetah"],
        ["--preset", "reinformer", "--preset", "dt-halfcheetah", "--steps=7", "--model.blocks=2"],
    ],
)
def test_options_override_the_preset_wherever_they_stand(arguments: list[str]) -> None:
    command = parse(TrainPolicy, "dtag", [*NEEDED, *arguments])
    preset = policy_preset("dt", "halfcheetah")
    assert command.config == dataclasses.replace(
        preset, steps=7, model=dataclasses.replace(preset.model, blocks=2)
    )


def test_help_shows_the_presets_values(capsys: pytest.CaptureFixture[str]) -> None:
    for preset, shown in (("dt-halfcheetah", "12000.0"), ("reinformer-halfcheetah", "None")):
        with pytest.raises(SystemExit) as exit_:
            main(["train", "policy", "--preset", preset, "--help"])
        assert exit_.value.code == 0
        (_, text) = capsys.readouterr().out.split("--target-return", 1)
        assert f"(default: {shown})" in " ".join(text.replace("│", "").split())


@pytest.mark.parametrize(
    ("command", "preset", "words"),
    [
        ("policy", "ppo", ("dt", "reinformer", "hopper")),
        ("policy", "dt-moon", ("dt", "reinformer", "maze2d-umaze")),
        ("policy", "corl-hopper", ("dt", "reinformer", "bc", "iql")),
        ("policy", "", ("dt", "reinformer")),
        ("policy", "dt-", ("dt", "reinformer")),
        ("critic", "dt-hopper", ("iql", "corl", "td3-bc")),
        ("critic", "td3-hopper", ("iql", "corl", "td3-bc")),
        ("critic", "corl-hopper-tiny", ("iql", "corl", "hopper-medium-replay")),
    ],
)
def test_an_unknown_preset_is_told_with_the_known_ones(
    command: str, preset: str, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["train", command, *NEEDED, "--preset", preset])
    assert exit_.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"dtag train {command}: --preset: expected ")
    assert err.rstrip().endswith(f"got {preset!r}")
    for word in words:
        assert word in err
