"""Fetching published Minari datasets, with an error within seconds where there is no network."""

from __future__ import annotations

import importlib
import os
import socket
import threading
import urllib.request
from pathlib import Path
from urllib.parse import urlsplit

from dtag_fast.data.storage import check_id, install, staging

REACH_SECONDS = 4.0


def download(id: str) -> Path:
    """Fetch a published dataset into the local Minari folder and return its folder.

    The remote is Minari's: $MINARI_REMOTE, by default hf://farama-minari.

    Raises:
        ImportError: naming the extra that the remote needs.
        ConnectionError: without a network, within `REACH_SECONDS`, or if the transfer fails.
        ValueError: if the remote has no such dataset.
    """
    check_id(id)
    host, port = _server(os.environ.get("MINARI_REMOTE", "hf://farama-minari"))
    _check_reachable(id, host, port)
    import minari

    with staging() as staged:
        try:
            minari.download_dataset(id)
        except ValueError as error:
            raise ValueError(f"{id}: {error}") from error
        except Exception as error:
            raise ConnectionError(f"{id}: download from {host} failed: {error}") from error
        found = sorted(path.parent.parent for path in staged.glob("**/data/metadata.json"))
        if staged / id not in found:
            raise ConnectionError(f"{id}: download from {host} ended without the dataset")
        for folder in found:  # a combined dataset brings its parts along
            target = install(staged, folder.relative_to(staged).as_posix())
            if folder == staged / id:
                result = target
    return result


def _server(remote: str) -> tuple[str, int]:
    """Host and port that the remote's client will talk to."""
    kind, separator, _ = remote.partition("://")
    if not separator or kind not in ("hf", "gcp"):
        raise ValueError(f"MINARI_REMOTE: expected hf://NAME or gcp://BUCKET, got {remote!r}")
    if kind == "gcp":
        try:
            importlib.import_module("google.cloud.storage")
        except ImportError:
            message = "downloading from gcp:// needs: pip install 'minari[gcs]'"
            raise ImportError(message) from None
        return "storage.googleapis.com", 443
    try:
        from huggingface_hub import constants
    except ImportError:
        message = "downloading datasets needs: pip install 'dtag-fast[download]'"
        raise ImportError(message) from None
    if constants.HF_HUB_OFFLINE:
        raise ConnectionError("HF_HUB_OFFLINE is set: datasets cannot be downloaded")
    address = urlsplit(constants.ENDPOINT)
    host = address.hostname or constants.ENDPOINT
    proxy = urllib.request.getproxies().get(address.scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        address = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host = address.hostname or proxy
    return host, address.port or (80 if address.scheme == "http" else 443)


def _check_reachable(id: str, host: str, port: int) -> None:
    """Open and close one connection. Minari's client alone would retry for 23 seconds."""
    outcome: list[OSError | None] = []

    def connect() -> None:
        try:
            socket.create_connection((host, port), timeout=REACH_SECONDS).close()
        except OSError as error:
            outcome.append(error)
        else:
            outcome.append(None)

    # In a thread, since looking up the name has no time limit of its own.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    problem = outcome[0] if outcome else f"no answer within {REACH_SECONDS:.0f} s"
    if problem is not None:
        raise ConnectionError(
            f"no network: {id} is not stored locally and {host}:{port} cannot be reached "
            f"({problem}); `dtag data make` and `dtag data collect` make datasets without one"
        )
