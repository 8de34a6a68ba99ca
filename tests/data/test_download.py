"""Downloads: errors without a network, and the real client against a local stand-in for the hub."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from dtag_fast.data import download
from dtag_fast.data.minari import from_minari, to_minari
from dtag_fast.data.trajectories import Trajectories

Build = Callable[..., Trajectories]
PUBLISHED = "mujoco/hopper/medium-v0"


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.usefixtures("no_proxy")
def test_no_network_is_an_error_within_seconds(
    minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    started = time.perf_counter()
    with pytest.raises(ConnectionError, match=r"no network: .*127.0.0.1:9 cannot be"):
        from_minari(PUBLISHED, download=True)
    assert time.perf_counter() - started < 5
    assert not minari_root.exists() or not list(minari_root.iterdir())


@pytest.mark.usefixtures("no_proxy")
def test_a_name_lookup_that_hangs_is_given_up(
    minari_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> None:
        release.wait(30)
        raise OSError("gave up")

    monkeypatch.setattr("dtag_fast.data.download.socket.create_connection", hang)
    monkeypatch.setattr(download, "REACH_SECONDS", 0.1)
    with pytest.raises(ConnectionError, match="no answer within"):
        download._check_reachable(PUBLISHED, "huggingface.co", 443)
    release.set()


def test_the_proxy_is_what_must_be_reachable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.getproxies", lambda: {"https": "proxy.test:3128"})
    monkeypatch.setattr("urllib.request.proxy_bypass", lambda host: False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "https://hub.test")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert download._server("hf://farama-minari") == ("proxy.test", 3128)


def test_offline_mode(monkeypatch: pytest.MonkeyPatch, minari_root: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConnectionError, match="HF_HUB_OFFLINE"):
        from_minari(PUBLISHED, download=True)


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, minari_root: Path) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setitem(sys.modules, "google.cloud.storage", None)
    with pytest.raises(ImportError, match=r"dtag-fast\[download\]"):
        from_minari(PUBLISHED, download=True)
    monkeypatch.setenv("MINARI_REMOTE", "gcp://minari-remote")
    with pytest.raises(ImportError, match=r"minari\[gcs\]"):
        from_minari(PUBLISHED, download=True)


def test_malformed_remote(monkeypatch: pytest.MonkeyPatch, minari_root: Path) -> None:
    monkeypatch.setenv("MINARI_REMOTE", "127.0.0.1:9")
    with pytest.raises(ValueError, match="MINARI_REMOTE: expected hf://NAME"):
        from_minari(PUBLISHED, download=True)


def test_malformed_id(minari_root: Path) -> None:
    with pytest.raises(ValueError, match="id: expected"):
        from_minari("hopper medium", download=True)


def test_nothing_is_downloaded_unasked(minari_root: Path) -> None:
    with pytest.raises(FileNotFoundError, match="download=True"):
        from_minari(PUBLISHED)


@contextmanager
def hub(files: Path) -> Iterator[str]:
    """The few endpoints of the Hugging Face hub that Minari uses, serving one repository."""
    commit = "0" * 40
    names = [path.relative_to(files).as_posix() for path in files.rglob("*") if path.is_file()]
    description = {
        "_id": "0",
        "id": "farama-minari/mujoco",
        "author": "farama-minari",
        "sha": commit,
        "private": False,
        "disabled": False,
        "gated": False,
        "downloads": 0,
        "likes": 0,
        "tags": [],
        "siblings": [{"rfilename": name} for name in names],
    }

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.respond(body=False)

        def do_GET(self) -> None:
            self.respond(body=True)

        def respond(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            kind, content = "application/json", b""
            status = 200
            prefix = "/datasets/farama-minari/mujoco/resolve/"
            if path == "/api/datasets":
                content = json.dumps([description]).encode()
            elif path.startswith("/api/datasets/farama-minari/mujoco/revision/"):
                content = json.dumps(description).encode()
            elif path.startswith("/api/datasets/farama-minari/mujoco/tree/"):
                content = json.dumps(
                    [
                        {"type": "file", "path": n, "size": (files / n).stat().st_size, "oid": n}
                        for n in names
                    ]
                ).encode()
            elif path.startswith(prefix) and path[len(prefix) :].partition("/")[2] in names:
                kind = "application/octet-stream"
                content = (files / path[len(prefix) :].partition("/")[2]).read_bytes()
            else:
                status = 404
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", commit)
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            if status == 404:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            requests.append(format % args)

    requests: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def run_download(
    root: Path, home: Path, endpoint: str, id: str
) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the client reads its endpoint when it is imported."""
    environment = {
        key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")
    }
    environment.update(
        MINARI_DATASETS_PATH=str(root),
        HF_ENDPOINT=endpoint,
        HF_HOME=str(home),
        HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_XET="1",
        HF_HUB_DISABLE_PROGRESS_BARS="1",
        PYTHONPATH=os.pathsep.join(path for path in sys.path if path),
    )
    code = (
        "import sys; from dtag_fast.data.trajectories import Trajectories; "
        "print(Trajectories.from_minari(sys.argv[1], download=True).fingerprint())"
    )
    return subprocess.run(
        [sys.executable, "-c", code, id],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_download_through_the_real_client(
    minari_root: Path, tmp_path: Path, build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = build([4, 6])
    # Published ids cannot be written locally, so the stand-in's files are made under another.
    folder = to_minari(data, "dtag/hopper/medium-v0")
    files = tmp_path / "hub"
    (files / "hopper").mkdir(parents=True)
    folder.rename(files / "hopper" / "medium-v0")
    metadata = files / "hopper" / "medium-v0" / "data" / "metadata.json"
    metadata.write_text(json.dumps({**json.loads(metadata.read_text()), "dataset_id": PUBLISHED}))
    (files / "namespace_metadata.json").write_text(
        json.dumps({"datasets": [PUBLISHED], "namespaces": ["mujoco/hopper"]})
    )
    (files / "hopper" / "namespace_metadata.json").write_text("{}")
    root, home = tmp_path / "downloaded", tmp_path / "home"
    with hub(files) as endpoint:
        result = run_download(root, home, endpoint, PUBLISHED)
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == data.fingerprint()
        missing = run_download(root, home, endpoint, "mujoco/hopper/nothing-v0")
        assert "ValueError: mujoco/hopper/nothing-v0: Couldn't find any version" in missing.stderr
    assert [path.name for path in root.iterdir()] == ["mujoco"]
    # The second time it is there already, and the hub is gone.
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    assert from_minari(PUBLISHED, download=True).fingerprint() == data.fingerprint()
