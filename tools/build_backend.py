"""The build backend that pip calls: scikit-build-core, with a pure Python wheel as the way out.

The native build runs in a process of its own, so that whatever stops it (no compiler, a compile
error, no CMake) can be reported with its last lines of output. Where it fails, the wheel is made
without the native module and carries a record of why, `dtag_fast/_build_failure.py`, which
`dtag doctor` shows. With DTAG_REQUIRE_NATIVE=1 in the environment the failure is an error instead.

`prepare_metadata_*` are left out on purpose: whether the wheel is pure is not known beforehand.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import scikit_build_core.build as skbuild
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_editable,
    get_requires_for_build_sdist,
    get_requires_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
]

REQUIRE_NATIVE = "DTAG_REQUIRE_NATIVE"
NATIVE_FAILED = "DTAG_NATIVE_FAILED"  # turns on the override in pyproject.toml
RECORD = Path("build/native-failure.py")  # the override's template
LOG_LINES = 60

Settings = dict[str, Any]


def build_wheel(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """PEP 517: build a wheel into `wheel_directory` and return its file name."""
    return _build("build_wheel", wheel_directory, config_settings)


def build_editable(
    wheel_directory: str,
    config_settings: Settings | None = None,
    metadata_directory: str | None = None,
) -> str:
    """PEP 660: build an editable wheel into `wheel_directory` and return its file name."""
    return _build("build_editable", wheel_directory, config_settings)


def _build(hook: str, wheel_directory: str, config_settings: Settings | None) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        answer = Path(scratch, "wheel-name")
        arguments = json.dumps([hook, wheel_directory, config_settings, str(answer)])
        process = subprocess.Popen(
            [sys.executable, __file__, arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
        )
        assert process.stdout is not None
        log: deque[str] = deque(maxlen=LOG_LINES)
        for line in process.stdout:
            print(line, end="", flush=True)
            log.append(line)
        if process.wait() == 0:
            return answer.read_text()
    if _is_set(REQUIRE_NATIVE):
        raise SystemExit(f"{REQUIRE_NATIVE} is set and the native module could not be built")
    reason = _reason(list(log))
    print(f"*** {reason}; going on without the native module", flush=True)
    _write_record(reason, "".join(log))
    os.environ[NATIVE_FAILED] = "1"
    try:
        wheel: str = getattr(skbuild, hook)(wheel_directory, config_settings)
    finally:
        del os.environ[NATIVE_FAILED]
        RECORD.unlink()
    return wheel


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() not in ("", "0", "false", "no", "off")


def _reason(log: list[str]) -> str:
    """One sentence: the message that looks most like the cause."""
    cause = next((line for line in log if "error: " in line), None)  # a compiler's
    cmake = next((i for i, line in enumerate(log) if line.startswith("CMake Error at")), None)
    if cause is None and cmake is not None:
        # Its message is the indented lines after that one.
        message = itertools.takewhile(lambda line: line[:1].isspace(), log[cmake + 1 :])
        cause = " ".join(list(filter(str.strip, message))[:3])
    if cause is None:
        cause = next((line for line in reversed(log) if "Error: " in line), " ".join(log[-1:]))
    return "the native build failed: " + " ".join(cause.split())


def _write_record(reason: str, log: str) -> None:
    contents = (
        '"""Why this installation has no native module; written when it was built."""\n\n'
        f"REASON = {reason!r}\n"
        f"LOG = {log!r}\n"
    )
    RECORD.parent.mkdir(exist_ok=True)
    # scikit-build-core substitutes ${name} in it.
    RECORD.write_text(contents.replace("$", "$$"), encoding="utf-8")


def _main() -> None:
    hook, wheel_directory, config_settings, answer = json.loads(sys.argv[1])
    wheel = getattr(skbuild, hook)(wheel_directory, config_settings)
    Path(answer).write_text(wheel)


if __name__ == "__main__":
    _main()
