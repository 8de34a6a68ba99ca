"""`mix`: several datasets of one environment as one, such as D4RL's medium-expert."""

from __future__ import annotations

import time
from collections.abc import Sequence

from dtag_fast.data.minari import to_minari
from dtag_fast.data.storage import MadeDataset, find_same
from dtag_fast.data.trajectories import Trajectories


def mix(ids: Sequence[str], *, id: str, force: bool = False) -> MadeDataset:
    """Write local Minari datasets as one.

    Args:
        ids: at least two, of one environment.
        id: of the new dataset.
        force: replace what has this id.

    Raises:
        FileNotFoundError: if one of them is not there.
        FileExistsError: if the id exists with other parts and `force` is not set.
        ValueError: see `Trajectories.concatenate`.
    """
    started = time.perf_counter()
    parts = [Trajectories.from_minari(part) for part in ids]
    parameters = {"mixed": [[part.info.id, part.fingerprint()] for part in parts]}
    same = find_same(id, parameters, force=force)
    if same is not None:
        return MadeDataset(id, same, True, time.perf_counter() - started)
    folder = to_minari(Trajectories.concatenate(parts, id=id), id, parameters=parameters)
    return MadeDataset(id, folder, False, time.perf_counter() - started)
