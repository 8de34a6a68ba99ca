"""Rows: whole or not there, each once, whatever happened to the process that wrote them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dtag_fast.studies.rows import RowWriter, read_rows


def test_rows_come_back_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "rows.jsonl"
    assert read_rows(path) == {}
    written = [{"key": key, "value": 0.1} for key in ("b", "a", "c")]
    with RowWriter(path) as rows:
        for row in written:
            rows.append(row)
    assert list(read_rows(path).values()) == written
    with RowWriter(path) as rows:
        assert list(rows.rows) == ["b", "a", "c"]


@pytest.mark.parametrize("cut", range(1, 20))
def test_a_torn_line_is_no_row_and_is_taken_off(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    whole = b'{"key": "a"}\n'
    path.write_bytes(whole + b'{"key": "b", "v": "\xc3\xa9"}\n'[:cut])
    assert list(read_rows(path)) == ["a"]
    with RowWriter(path) as rows:
        rows.append({"key": "b"})
    assert path.read_bytes() == whole + b'{"key": "b"}\n'


def test_a_row_is_written_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowWriter(path) as rows:
        rows.append({"key": "a"})
        with pytest.raises(ValueError, match="there is a row of the run a already"):
            rows.append({"key": "a"})
        with pytest.raises(ValueError, match="not JSON compliant"):
            rows.append({"key": "b", "value": float("nan")})
    assert path.read_bytes() == b'{"key": "a"}\n'


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"key": "a"}\nnonsense\n{"key": "b"}\n', r"rows.jsonl:2: expected a row"),
        (b'{"no": "key"}\n', r"rows.jsonl:1: expected a row"),
        (b'{"key": "a"}\n{"key": "a"}\n', r"rows.jsonl:2: a second row of the run a"),
    ],
)
def test_a_damaged_file_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=said):
        RowWriter(path)
    assert path.read_bytes() == content


def test_only_one_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with RowWriter(path), pytest.raises(RuntimeError, match="another process is at work"):
        RowWriter(path)
    RowWriter(path).close()


def test_a_killed_writer_leaves_whole_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    code = """
import sys
from pathlib import Path
from dtag_fast.studies.rows import RowWriter
rows = RowWriter(Path(sys.argv[1]))
for i in range(10**6):
    rows.append({"key": str(i), "filling": "x" * 5000})
    print(i, flush=True)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    said = [int(process.stdout.readline()) for _ in range(20)]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    found = read_rows(path)
    assert list(found)[: len(said)] == [str(i) for i in said]
    with RowWriter(path) as rows:
        rows.append({"key": "after"})
    assert json.loads(path.read_text().splitlines()[-1]) == {"key": "after"}
