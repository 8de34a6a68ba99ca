"""The local Minari folder: where it is, what a name may be, and writing to it all or nothing."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dtag_fast.data.references import ReferenceScores

if TYPE_CHECKING:
    from gymnasium import Space
    from gymnasium.envs.registration import EnvSpec

# Minari's own pattern, made stricter: a version is required, every part has two characters or more.
# Ids that break either rule make Minari fail half-way or break its listing afterwards.
_PART = r"[A-Za-z0-9_][A-Za-z0-9_-]+"
_ID = re.compile(rf"(?:{_PART}/)*[A-Za-z0-9_][A-Za-z0-9_-]*-v\d+")
_PUBLISHED = ("D4RL", "mujoco", "atari", "minigrid")
STAGING_PREFIX = ".dtag-writing-"
_ENVIRONMENT_LOCK = threading.Lock()


@dataclass(frozen=True)
class MadeDataset:
    """A dataset that `make`, `collect`, `mix` or `import_d4rl` wrote, or found there already."""

    id: str
    path: Path
    reused: bool
    seconds: float

    @property
    def message(self) -> str:
        """One line for a person."""
        if self.reused:
            return f"{self.id}: already there with these parameters, reused ({self.path})"
        return f"{self.id}: written in {self.seconds:.1f} s ({self.path})"


def datasets_root() -> Path:
    """The folder of local Minari datasets: $MINARI_DATASETS_PATH, else ~/.minari/datasets."""
    path = os.environ.get("MINARI_DATASETS_PATH")
    return Path(path) if path is not None else Path.home() / ".minari" / "datasets"


def dataset_path(id: str) -> Path:
    """The folder of a dataset id, whether it exists or not."""
    return datasets_root() / id


def check_id(id: str, *, writing: bool = False) -> None:
    """Raise ValueError unless `id` is a Minari id, and for writing one of our own namespaces."""
    if not isinstance(id, str) or not _ID.fullmatch(id):
        raise ValueError(
            f"id: expected name-v0 or namespace/name-v0, with at least two characters in every "
            f"part and a version at the end, got {id!r}"
        )
    if writing and id.split("/")[0] in _PUBLISHED:
        raise ValueError(
            f"id: {id!r} lies in the namespace of published datasets; local data needs another, "
            f"such as dtag/{id.split('/', 1)[-1]}"
        )


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json of a dataset folder.

    Raises:
        ValueError: if the folder is not a whole dataset; says what is missing.
    """
    data = folder / "data"
    try:
        metadata = json.loads((data / "metadata.json").read_text())
    except FileNotFoundError:
        raise ValueError(f"{folder}: not a Minari dataset: data/metadata.json is missing") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{folder}: broken Minari dataset: data/metadata.json: {error}") from None
    missing = {"dataset_id", "total_episodes", "data_format"} - metadata.keys()
    if missing:
        raise ValueError(f"{folder}: broken Minari dataset: metadata lacks {sorted(missing)}")
    if metadata["data_format"] == "hdf5" and not (data / "main_data.hdf5").exists():
        raise ValueError(f"{folder}: broken Minari dataset: data/main_data.hdf5 is missing")
    return dict(metadata)


def environment_id(folder: Path) -> str | None:
    """Of the environment that a dataset is scored in, else of the one that made it.

    None where the metadata names none, or where there is no whole dataset.
    """
    try:
        metadata = read_metadata(folder)
        raw = metadata.get("eval_env_spec") or metadata.get("env_spec")
        return None if raw is None else str(json.loads(raw)["id"])
    except (ValueError, KeyError, OSError):
        return None


def find_same(id: str, parameters: Mapping[str, Any], *, force: bool) -> Path | None:
    """The folder of a dataset written with exactly these parameters, None if there is none.

    Raises:
        FileExistsError: if the id is taken by something else and `force` is not set.
    """
    check_id(id, writing=True)
    folder = dataset_path(id)
    if not folder.exists() or force:
        return None
    try:
        found = read_metadata(folder).get("provenance", {}).get("parameters")
    except ValueError as error:
        raise FileExistsError(f"{error}; remove it, or pass force=True to replace it") from None
    asked = json.loads(json.dumps(parameters))
    if found == asked:
        return folder
    raise FileExistsError(
        f"{id} exists with other parameters: it has {found}, asked for {asked}; "
        "pass force=True to replace it, or another id"
    )


@contextmanager
def staging() -> Iterator[Path]:
    """A hidden folder inside the root that stands in for it while Minari writes.

    Minari takes its root from the environment at every call; it is pointed here and back, so one
    thread at a time. What is not moved out by `install` disappears, whatever happens.
    """
    root = datasets_root()
    root.mkdir(parents=True, exist_ok=True)
    with _ENVIRONMENT_LOCK:
        before = os.environ.get("MINARI_DATASETS_PATH")
        folder = Path(tempfile.mkdtemp(prefix=STAGING_PREFIX, dir=root))
        os.environ["MINARI_DATASETS_PATH"] = str(folder)
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["MINARI_DATASETS_PATH"]
            else:
                os.environ["MINARI_DATASETS_PATH"] = before
            shutil.rmtree(folder, ignore_errors=True)


def install(staged: Path, id: str) -> Path:
    """Move a finished dataset from the staging folder to its place, replacing what is there."""
    root = staged.parent
    target = root / id
    for parent in reversed(Path(id).parents[:-1]):  # the namespaces, outermost first
        (root / parent).mkdir(exist_ok=True)
        description = root / parent / "namespace_metadata.json"
        if not description.exists():
            description.write_text("{}")
    if target.exists():
        target.replace(Path(tempfile.mkdtemp(dir=staged)) / "replaced")
    return (staged / id).replace(target)


def write_dataset(
    id: str,
    episodes: Sequence[Mapping[str, Any]],
    *,
    env_spec: EnvSpec | None,
    eval_env_spec: EnvSpec | None,
    observation_space: Space[Any],
    action_space: Space[Any],
    reference: ReferenceScores | None,
    algorithm: str,
    description: str,
    provenance: Mapping[str, Any],
    requirements: Sequence[str] = (),
) -> Path:
    """Write a Minari dataset (HDF5) in one piece: it is there whole, or not at all.

    Args:
        id: checked before anything is written; an existing dataset of this id is replaced.
        episodes: mappings with `observations` [T + 1, S] (or a dict of such), `actions` [T, A],
            `rewards`, `terminations`, `truncations` [T] and, if known, `seed`.
        env_spec, eval_env_spec: the environment that made the data and the one to score in.
        reference: stored as Minari's ref_min_score and ref_max_score.
        provenance: stored in the metadata under "provenance"; `find_same` reads "parameters" in it.
        requirements: pip requirements for reproducing the environment.
    """
    import minari
    from minari.data_collector.episode_buffer import EpisodeBuffer

    check_id(id, writing=True)
    if not episodes:
        raise ValueError(f"{id}: episodes: expected at least one")
    with staging() as staged, warnings.catch_warnings():
        # Minari recommends an e-mail address and a code link, and gymnasium comments on env ids.
        warnings.filterwarnings("ignore", category=UserWarning, module=r"minari\.|gymnasium\.")
        dataset = minari.create_dataset_from_buffers(
            id,
            [EpisodeBuffer(**episode) for episode in episodes],
            env=env_spec,
            eval_env=eval_env_spec,
            algorithm_name=algorithm,
            author="dtag-fast",
            observation_space=observation_space,
            action_space=action_space,
            ref_min_score=None if reference is None else reference.minimum,
            ref_max_score=None if reference is None else reference.maximum,
            description=description,
            data_format="hdf5",
            requirements=list(requirements),
        )
        dataset.storage.update_metadata({"provenance": dict(provenance)})
        return install(staged, id)


def versions(*packages: str) -> dict[str, str]:
    """Installed versions, for provenance; a package that is not installed is left out."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
