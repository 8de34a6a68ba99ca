"""A report: one HTML file that needs nothing else, its plots as PNG and its results as JSON.

Sections hold text, facts, tables and plots. Everything a caller gives is text and is escaped; the
page has no script and loads nothing.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT_FILE = "report.html"
RESULTS_FILE = "results.json"
PACKAGES = ("dtag-fast", "torch", "numpy", "gymnasium", "minari", "mujoco", "gymnasium-robotics")


@dataclass(frozen=True)
class Estimate:
    """A value with its interval, in a table; NaN for both ends where there is none."""

    value: float
    low: float
    high: float
    digits: int = 1

    @property
    def has_interval(self) -> bool:
        return not (math.isnan(self.low) or math.isnan(self.high))


@dataclass(frozen=True)
class Text:
    """Paragraphs, with an empty line between them."""

    text: str


@dataclass(frozen=True)
class Facts:
    """Names with their values: settings, sizes, times."""

    items: Mapping[str, object]


@dataclass(frozen=True)
class Commands:
    """Lines to type into a shell."""

    lines: Sequence[str]


@dataclass(frozen=True)
class Links:
    """Names with files beside the page, whose paths are relative to it."""

    files: Mapping[str, str]

    def __post_init__(self) -> None:
        for name, path in self.files.items():
            if not re.fullmatch(
                r"[A-Za-z0-9_-][A-Za-z0-9_.-]*(/[A-Za-z0-9_-][A-Za-z0-9_.-]*)*", path
            ):
                raise ValueError(f"files[{name!r}]: expected a relative path, got {path!r}")


@dataclass(frozen=True)
class Table:
    """Rows of a table; a cell is text, a number, an `Estimate`, or None for an empty one.

    `emphasized` are the indices of rows to stand out.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    caption: str = ""
    emphasized: Sequence[int] = ()

    def __post_init__(self) -> None:
        for index, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise ValueError(
                    f"rows[{index}]: expected {len(self.columns)} cells, one a column, "
                    f"got {len(row)}"
                )


@dataclass(frozen=True)
class Plot:
    """A figure, written to `name`.png as well. `alt` says in words what it shows."""

    name: str
    figure: Figure
    caption: str
    alt: str

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[A-Za-z0-9_-]+", self.name):
            raise ValueError(f"name: expected letters, digits, - and _, got {self.name!r}")


Item = Text | Facts | Commands | Links | Table | Plot


@dataclass(frozen=True)
class Section:
    """A heading and what comes under it."""

    title: str
    items: Sequence[Item]


def write_report(
    directory: str | Path,
    title: str,
    sections: Sequence[Section],
    *,
    summary: str = "",
    results: Mapping[str, Any] | None = None,
    commands: Sequence[str] = (),
    versions: Mapping[str, str] | None = None,
) -> Path:
    """Write `report.html`, a PNG for every plot and, with `results`, `results.json`.

    Each file replaces its predecessor at once, the page last; a reader never sees half a file.

    Args:
        directory: made if it is not there; other files in it stay.
        title: of the page.
        sections: in their order.
        summary: one or two sentences under the title.
        results: JSON values, numpy's scalars and arrays too; a number that is not finite becomes
            null.
        commands: what was run, for the closing section.
        versions: of what was used, for the closing section; None takes `installed_versions()`.

    Returns:
        The path of the page.
    """
    from dtag_fast.studies.style import DPI

    directory = Path(directory)
    plots = [item for section in sections for item in section.items if isinstance(item, Plot)]
    names = [plot.name for plot in plots]
    if len(set(names)) < len(names):
        raise ValueError(f"sections: expected plots of different names, got {names}")
    content = None if results is None else json.dumps(_jsonable(results), indent=2) + "\n"
    images: dict[str, bytes] = {}
    for plot in plots:
        buffer = io.BytesIO()
        plot.figure.savefig(buffer, format="png", dpi=DPI)
        images[plot.name] = buffer.getvalue()
    closing = [Facts(installed_versions() if versions is None else versions)]
    about = Section("How it was made", [Commands(commands), *closing] if commands else closing)
    page = _page(title, summary, [*sections, about], images)

    directory.mkdir(parents=True, exist_ok=True)
    for name, image in images.items():
        _replace(directory / f"{name}.png", image)
    if content is not None:
        _replace(directory / RESULTS_FILE, content.encode())
    _replace(directory / REPORT_FILE, page.encode())
    return directory / REPORT_FILE


def installed_versions() -> dict[str, str]:
    """Of Python, the packages that matter and the machine, as far as they are there."""
    versions = {"Python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    versions["machine"] = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    return versions


def _page(
    title: str, summary: str, sections: Sequence[Section], images: Mapping[str, bytes]
) -> str:
    body = "\n".join(
        f"<section>\n<h2>{escape(section.title)}</h2>\n"
        + "\n".join(_item(item, images) for item in section.items)
        + "\n</section>"
        for section in sections
    )
    lead = f'<p class="lead">{escape(summary)}</p>' if summary else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{CSS}</style>
</head>
<body>
<main>
<header>
<h1>{escape(title)}</h1>
{lead}
</header>
{body}
</main>
</body>
</html>
"""


def _item(item: Item, images: Mapping[str, bytes]) -> str:
    match item:
        case Text(text):
            paragraphs = re.split(r"\n\s*\n", text.strip())
            return "\n".join(f"<p>{escape(paragraph)}</p>" for paragraph in paragraphs)
        case Facts(items):
            rows = "".join(
                f"<div><dt>{escape(name)}</dt><dd>{_cell(value)}</dd></div>"
                for name, value in items.items()
            )
            return f"<dl>{rows}</dl>"
        case Commands(lines):
            return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>"
        case Links(files):
            links = " \N{MIDDLE DOT} ".join(
                f'<a href="{escape(path)}">{escape(name)}</a>' for name, path in files.items()
            )
            return f'<p class="links">{links}</p>'
        case Table():
            return _table(item)
        case Plot(name, _, caption, alt):
            data = base64.b64encode(images[name]).decode()
            return (
                f'<figure><img src="data:image/png;base64,{data}" alt="{escape(alt)}">'
                f"<figcaption>{escape(caption)}</figcaption></figure>"
            )
    raise TypeError(
        f"items: expected one of Text, Facts, Commands, Links, Table, Plot, got {item!r}"
    )


def _table(table: Table) -> str:
    numeric = [
        all(row[i] is None or _is_number(row[i]) for row in table.rows)
        for i in range(len(table.columns))
    ]

    # On a telephone each row becomes a block of lines, in which the label names the column.
    labels = [escape(column, quote=True) for column in table.columns]
    kinds = [' class="number"' if is_number else "" for is_number in numeric]
    rows = []
    for index, row in enumerate(table.rows):
        cells = "".join(
            f'<td{kind} data-label="{label}"><span>{_cell(value)}</span></td>'
            for kind, label, value in zip(kinds, labels, row, strict=True)
        )
        mark = ' class="emphasized"' if index in table.emphasized else ""
        rows.append(f"<tr{mark}>{cells}</tr>")
    head = "".join(f"<th{number}>{label}</th>" for number, label in zip(kinds, labels, strict=True))
    body = "\n".join(rows)
    kind = "scroll wide" if len(table.columns) > 5 else "scroll"
    note = f'<p class="note">{escape(table.caption)}</p>' if table.caption else ""
    return (
        f'<div class="{kind}"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody></table></div>{note}"
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float | np.number | Estimate) and not isinstance(value, bool)


def _cell(value: object) -> str:
    match value:
        case None:
            return ""
        case Estimate(mean, digits=digits) if not value.has_interval:
            return _minus(f"{mean:.{digits}f}")
        case Estimate(mean, low, high, digits):
            interval = f"{low:.{digits}f} to {high:.{digits}f}"
            return (
                f'{_minus(f"{mean:.{digits}f}")} <span class="interval">{_minus(interval)}</span>'
            )
        case float() | np.floating():
            return _minus(f"{value:.4g}")
        case _:
            return escape(str(value))


def _minus(number: str) -> str:
    return number.replace("-", "\N{MINUS SIGN}")


def _jsonable(value: Any) -> Any:
    match value:
        case Mapping():
            return {str(key): _jsonable(inner) for key, inner in value.items()}
        case np.ndarray() | np.generic():
            return _jsonable(value.tolist())
        case list() | tuple():
            return [_jsonable(inner) for inner in value]
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
    raise TypeError(f"results: expected JSON values, got {type(value).__name__}: {value!r}")


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


CSS = """
:root { color-scheme: light dark; --paper: #fff; --ink: #26323d; --faint: #64717d;
  --line: #dde3e8; --soft: #f3f6f8; --accent: #b84d00; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #14191e; --ink: #dfe6ec; --faint: #98a5b1; --line: #2c353d; --soft: #1c2329;
    --accent: #ff9a52; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 42rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; padding-top: 1rem;
  border-top: 1px solid var(--line); }
p { margin: .75rem 0; }
.lead { font-size: 1.1rem; color: var(--faint); }
a { color: inherit; text-decoration-color: var(--accent); text-underline-offset: .2em; }
.links { font-size: .85rem; color: var(--faint); }
.scroll { overflow-x: auto; margin: 1rem 0 0; }
table { border-collapse: collapse; width: 100%; font-size: .95rem; }
.note, figcaption { color: var(--faint); font-size: .85rem; margin: .6rem 0 0; }
th, td { text-align: left; padding: .45rem .75rem .45rem 0; border-bottom: 1px solid var(--line);
  vertical-align: top; }
th { font-size: .8rem; color: var(--faint); font-weight: 600; vertical-align: bottom; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.interval { display: block; font-size: .8rem; color: var(--faint); font-weight: 400; }
.emphasized td { font-weight: 600; }
.emphasized td:first-child { color: var(--accent); }
figure { margin: 1.25rem 0; }
img { display: block; width: 100%; height: auto; border-radius: .4rem; }
dl { margin: 1rem 0; display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); }
dl div { display: flex; justify-content: space-between; gap: 1rem; padding: .35rem 0;
  border-bottom: 1px solid var(--line); }
dt { color: var(--faint); }
dd { margin: 0; text-align: right; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
pre { background: var(--soft); border-radius: .4rem; padding: .8rem 1rem; overflow-x: auto;
  font: .85rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
@media (min-width: 64rem) { .wide { width: 60rem; margin-left: calc(50% - 30rem); } }
@media (prefers-color-scheme: dark) { img { background: #fff; padding: .5rem; } }
@media (max-width: 34rem) {
  main { padding: 1.25rem 1rem 3rem; }
  h1 { font-size: 1.4rem; }
  thead { display: none; }
  tr { display: block; padding: .5rem 0; border-bottom: 1px solid var(--line); }
  td { display: flex; justify-content: space-between; gap: 1rem; padding: .15rem 0; border: 0; }
  td:has(span:empty) { display: none; }
  td::before { content: attr(data-label); color: var(--faint); font-weight: 400; }
  td:first-child { font-weight: 600; }
  td:first-child::before { content: none; }
  td span { text-align: right; }
  td:first-child span { text-align: left; }
}
@media print { main { max-width: none; } section { break-inside: avoid-page; } }
"""
