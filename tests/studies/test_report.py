"""The report is one page that needs nothing else, and says what it was given."""

from __future__ import annotations

import base64
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from dtag_fast.studies.report import (
    Commands,
    Estimate,
    Facts,
    Links,
    Plot,
    Section,
    Table,
    Text,
    installed_versions,
    write_report,
)
from dtag_fast.studies.style import DPI

NASTY = "<script>alert('x')</script> & \"quotes\""
VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags are balanced; keeps text, attributes and images."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def small_plot(name: str = "scores") -> Plot:
    figure = Figure(figsize=(4.8, 1.5))
    figure.add_subplot().plot([1, 2], [3, 4])
    return Plot(name, figure, f"caption {NASTY}", f"alt {NASTY}")


def write(directory: Path, **options: Any) -> tuple[Path, Page]:
    table = Table(
        ["policy", NASTY, "return", "count"],
        [
            ["DT", NASTY, Estimate(-12.34, -20.0, 3.21), 3],
            ["DT, refined", None, Estimate(0.4321, 0.4, 0.5, digits=3), np.float64(-0.5)],
            ["alone", None, Estimate(-0.25, math.nan, math.nan, digits=2), None],
        ],
        caption="caption of the table",
        emphasized=[1],
    )
    sections = [
        Section(f"First {NASTY}", [Text(f"one\n\ntwo {NASTY}"), table, small_plot()]),
        Section("Second", [Facts({"step size η": 0.03, NASTY: NASTY}), Commands(["a < b", "c"])]),
    ]
    path = write_report(directory, f"Title {NASTY}", sections, summary=NASTY, **options)
    return path, Page(path.read_text(encoding="utf-8"))


def test_page_is_whole_and_loads_nothing(tmp_path: Path) -> None:
    path, page = write(tmp_path / "new" / "folder")
    source = path.read_text(encoding="utf-8")
    assert path.name == "report.html"
    assert source.startswith("<!doctype html>")
    for tag, attributes in page.tags:
        assert tag not in {"script", "link", "iframe", "object"}
        for name in ("src", "href", "srcset"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r"base64,[^\"]*", "", source))
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        page.tags
    )


def test_everything_given_is_escaped_and_there(tmp_path: Path) -> None:
    path, page = write(tmp_path, commands=[f"make demo {NASTY}"], versions={"torch": NASTY})
    source = path.read_text(encoding="utf-8")
    assert "<script" not in source
    # Title twice, lead, heading, paragraph, column, cell, caption, fact twice, command, version.
    assert page.text.count(NASTY) == 12
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images[0]["alt"] == f"alt {NASTY}"
    labels = [attributes.get("data-label") for tag, attributes in page.tags if tag == "td"]
    assert labels == ["policy", NASTY, "return", "count"] * 3
    assert "−12.3 −20.0 to 3.2" in page.text
    assert "0.432 0.400 to 0.500" in page.text
    assert "−0.25\n" in page.text
    assert "nan" not in page.text
    assert "−0.5" in page.text
    assert "a < b\nc" in page.text
    assert source.count('<tr class="emphasized">') == 1
    assert "<p>one</p>\n<p>two " in source


def test_links_lead_to_files_beside_the_page(tmp_path: Path) -> None:
    links = Links({f"rows {NASTY}": "rows.jsonl", "LaTeX": "tables/scores.tex"})
    page = Page(write_report(tmp_path, "x", [Section("Files", [links])]).read_text())
    found = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert found == ["rows.jsonl", "tables/scores.tex"]
    assert f"rows {NASTY} · LaTeX" in page.text
    for path in ("../up", "/etc", "https://x", "a//b", "", "javascript:x"):
        with pytest.raises(ValueError, match=r"files\['x'\]: expected a relative path"):
            Links({"x": path})


def test_plots_beside_the_page_are_those_in_it(tmp_path: Path) -> None:
    _, page = write(tmp_path)
    image = (tmp_path / "scores.png").read_bytes()
    assert imread(tmp_path / "scores.png").shape[:2] == (1.5 * DPI, 4.8 * DPI)
    (src,) = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert src is not None
    assert base64.b64decode(src.removeprefix("data:image/png;base64,")) == image


def test_results(tmp_path: Path) -> None:
    results = {
        "return": np.float32(1.5),
        "returns": np.array([1.0, math.nan]),
        "nested": [{"interval": (0.0, math.inf), 3: None, "on": True}],
    }
    write(tmp_path, results=results)
    assert json.loads((tmp_path / "results.json").read_text()) == {
        "return": 1.5,
        "returns": [1.0, None],
        "nested": [{"interval": [0.0, None], "3": None, "on": True}],
    }


def test_versions(tmp_path: Path) -> None:
    versions = installed_versions()
    assert {"Python", "torch", "numpy", "machine"} <= versions.keys()
    _, page = write(tmp_path)
    assert versions["torch"] in page.text
    assert "How it was made" in page.text


def test_a_second_report_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("stays")
    write(tmp_path, results={"a": 1})
    write_report(tmp_path, "Another", [], results={"a": 2})
    assert "Another" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "results.json").read_text()) == {"a": 2}
    files = {path.name for path in tmp_path.iterdir()}
    assert files == {"mine.txt", "report.html", "results.json", "scores.png"}


def test_what_cannot_be_written_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, results={"a": 1})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(TypeError, match="results: expected JSON values, got set"):
        write_report(tmp_path, "New", [], results={"a": {1}})
    broken = Section("x", [small_plot("other"), object()])  # type: ignore[list-item]
    with pytest.raises(TypeError, match="items: expected one of Text"):
        write_report(tmp_path, "New", [broken])

    def full(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[:10])
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space"):
        write_report(tmp_path, "New", [], results={"a": 2})
    monkeypatch.undo()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rows\[1\]: expected 2 cells, one a column, got 1"):
        Table(["a", "b"], [[1, 2], [3]])
    with pytest.raises(ValueError, match=r"name: expected letters, digits"):
        small_plot("../x")
    sections = [Section("x", [small_plot(), small_plot()])]
    with pytest.raises(ValueError, match="plots of different names"):
        write_report(tmp_path, "x", sections)
    assert list(tmp_path.iterdir()) == []
