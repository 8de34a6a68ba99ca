"""What benchmarks share: the machine, interleaved timing, one table at the end, rows to keep.

pytest benchmarks                  measure and print
pytest benchmarks --record         and write the rows to benchmarks/results/
pytest benchmarks --quick          a look whether all runs; its numbers are worth little
pytest benchmarks --critic PATH    also refine with a trained critic, on its dataset
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dtag_fast import build_info

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"

WARM_UP_ROUNDS = 3
WARM_UP_SECONDS = 1.0  # after which it ends
LONG_CALL = (
    10e-3  # seconds; before a longer call none is needed that brings its data into the caches
)
BURST_SECONDS = 1e-3  # a contender's calls in one round
LONGEST_BURST = 20
PAUSE = 0.05  # seconds; after it threads are asleep, which takes more calls to be forgotten
BURST_AFTER_PAUSE_SECONDS = 30e-3
LEAST_SHARE = 0.9  # of a processor; with less, what is measured is the scheduler


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--record", action="store_true", help="write the benchmarks' rows to benchmarks/results/"
    )
    parser.addoption("--quick", action="store_true", help="few rounds: a look whether all runs")
    parser.addoption(
        "--critic",
        type=Path,
        metavar="PATH",
        help="a trained critic: a run's or checkpoint's folder",
    )


@dataclass(frozen=True)
class Machine:
    """What a number depends on besides the code; nothing that tells whose machine it is."""

    processor: str
    cores: int
    system: str
    python: str
    torch: str
    numpy: str
    onnxruntime: str
    isa: str
    commit: str
    date: str

    @classmethod
    def here(cls) -> Machine:
        """This one."""
        return cls(
            processor=_processor(),
            cores=len(_cores()),
            system=f"{platform.system()} {platform.machine()}",
            python=platform.python_version(),
            torch=torch.__version__,
            numpy=np.__version__,
            onnxruntime=_version("onnxruntime"),
            isa=build_info.describe()["isa"] or "none",
            commit=_commit(),
            date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        )

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.system}, Python {self.python}, "
            f"torch {self.torch}, numpy {self.numpy}, onnxruntime {self.onnxruntime}, "
            f"kernels {self.isa}, commit {self.commit}, {self.date}"
        )

    @property
    def slug(self) -> str:
        """The processor's name for use in a file's."""
        name = re.sub(r"\((R|TM|C)\)|@.*|\bCPU\b|\bProcessor\b", " ", self.processor, flags=re.I)
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


@dataclass
class Table:
    """Rows of one benchmark: what is printed at the end and, with --record, written.

    Attributes:
        name: of the file; lower case.
        columns: keys of a row, in the order printed, with the format of each: "{:.1f}".
        rows: the rows; keys that are not in `columns` are written, not printed.
        notes: lines printed under the table, and written.
        share: the smallest share of the wall time for which the calling thread had a processor.
    """

    name: str
    columns: Mapping[str, str]
    rows: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    share: float = 1.0

    def lines(self) -> list[str]:
        """The table as text; numbers are aligned to the right."""
        cells = [[self._cell(row, key) for row in self.rows] for key in self.columns]
        columns = []
        for key, column in zip(self.columns, cells, strict=True):
            width = max(map(len, [key, *column]))
            right = all(map(_is_number, column))
            columns.append([c.rjust(width) if right else c.ljust(width) for c in [key, *column]])
        return ["  ".join(line).rstrip() for line in zip(*columns, strict=True)]

    def _cell(self, row: Mapping[str, Any], key: str) -> str:
        return "-" if row.get(key) is None else self.columns[key].format(row[key])

    def write(self, machine: Machine) -> Path:
        """Write rows, notes and machine to benchmarks/results/; today's file is replaced."""
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / f"{machine.date}-{machine.slug}-{self.name}.json"
        document = {"machine": asdict(machine), "notes": self.notes, "rows": self.rows}
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        return path


TABLES = pytest.StashKey[list[Table]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TABLES] = []


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    tables = [table for table in config.stash[TABLES] if table.rows]
    if not tables:
        return
    machine = Machine.here()
    for table in tables:
        terminalreporter.section(table.name)
        terminalreporter.write_line(str(machine))
        for line in ["", *table.lines(), "", *table.notes]:
            terminalreporter.write_line(line)
        record, busy = config.getoption("--record"), table.share < LEAST_SHARE
        if busy:
            kept = ", and none is written" if record else ""
            terminalreporter.write_line(
                f"Other processes were busy: this one had a processor for {table.share:.0%} of the "
                f"time. Neither times nor ratios are to be trusted{kept}.",
                yellow=True,
            )
        elif record:
            path = table.write(machine).relative_to(ROOT)
            terminalreporter.write_line(f"Rows written to {path.as_posix()}")


@pytest.fixture(scope="session")
def new_table(pytestconfig: pytest.Config) -> Callable[..., Table]:
    """`new_table(name, columns)`: a `Table` to put rows into."""

    def make(name: str, columns: Mapping[str, str]) -> Table:
        table = Table(name, columns)
        pytestconfig.stash[TABLES].append(table)
        return table

    return make


@pytest.fixture
def one_thread() -> Iterator[None]:
    """torch computes with one thread while the test runs."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Interleaved:
    """Contenders timed in turn, so that a machine's moods meet them all alike.

    A round goes through all of them, each round starting with another one. A contender's turn is
    one call that is not timed, which brings its data into the caches (unless calls are long), and
    then a burst of timed ones.

    Args:
        contenders: what to call, by name.
        clock: in seconds; `time.thread_time` does not count what other processes take, and is for
            contenders that compute in the calling thread alone.
        threads: that a contender may use. With more than one there is a pause before each turn, as
            the threads of some libraries go on spinning after a call, where the next contender
            would have a core, and bursts are longer; `share` is judged by what the rest of the
            machine did.
    """

    def __init__(
        self,
        contenders: Mapping[str, Callable[[], object]],
        clock: Callable[[], float] = time.perf_counter,
        threads: int = 1,
    ) -> None:
        self.contenders = dict(contenders)
        self.clock = clock
        self.threads = threads
        self.order = list(contenders)
        self.seconds: dict[str, list[float]] = {name: [] for name in contenders}
        self.bursts = dict.fromkeys(contenders, 1)
        self.long: set[str] = set()  # those whose calls need no warming up
        self._wall = self._cpu = self._elsewhere = 0.0
        start = time.perf_counter()
        for _ in range(WARM_UP_ROUNDS):
            self.round()
            if time.perf_counter() - start > WARM_UP_SECONDS:
                break
        self.round_seconds = 0.0  # expected
        for name, times in self.seconds.items():
            least = min(times)
            burst = BURST_SECONDS if threads == 1 else BURST_AFTER_PAUSE_SECONDS
            self.bursts[name] = min(LONGEST_BURST, max(1, int(burst / least)))
            if least > LONG_CALL:
                self.long.add(name)
            self.round_seconds += least * (self.bursts[name] + (name not in self.long))
            self.round_seconds += PAUSE * (threads > 1)
        self.forget()

    def forget(self) -> None:
        """Drop the times taken so far."""
        for times in self.seconds.values():
            times.clear()
        self._wall = self._cpu = self._elsewhere = 0.0

    def round(self) -> None:
        """One turn of each contender."""
        for name in self.order:
            call = self.contenders[name]
            if self.threads > 1:
                time.sleep(PAUSE)
            if name not in self.long:
                call()
            wall, cpu, elsewhere = time.perf_counter(), time.thread_time(), _busy_elsewhere()
            for _ in range(self.bursts[name]):
                start = self.clock()
                call()
                self.seconds[name].append(self.clock() - start)
            self._cpu += time.thread_time() - cpu
            self._wall += time.perf_counter() - wall
            self._elsewhere += _busy_elsewhere() - elsewhere
        self.order = self.order[1:] + self.order[:1]

    def rounds_within(self, seconds: float, least: int, most: int) -> int:
        """How many rounds fit into so many seconds."""
        return max(least, min(most, int(seconds / self.round_seconds)))

    @property
    def share(self) -> float:
        """The share of the wall time for which the contender had its processors.

        For one thread by its own clock. Several wait for each other, too: there it is what other
        processes left of one processor, where the system tells (Linux), else 1.
        """
        if self.threads == 1:
            return self._cpu / self._wall
        return 1.0 - max(0.0, self._elsewhere / self._wall)

    def microseconds(self) -> dict[str, dict[str, float]]:
        """For each contender the number of timed calls and their p5, p50 and p95."""
        found = {}
        for name, times in self.seconds.items():
            p5, p50, p95 = np.percentile(times, [5, 50, 95]) * 1e6
            found[name] = {"calls": len(times), "p5": p5, "p50": p50, "p95": p95}
        return found


@pytest.fixture(scope="session")
def interleaved() -> type[Interleaved]:
    """The class `Interleaved`."""
    return Interleaved


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"[-+0-9.,e]+x?|-", cell) is not None


def _busy_elsewhere() -> float:
    """Processor seconds that other processes have had so far; 0 where the system does not tell."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return 0.0
    user, nice, system, _, _, *interrupts = statistics.read_text().split("\n", 1)[0].split()[1:9]
    ticks = sum(map(int, (user, nice, system, *interrupts)))  # idle and waiting left out
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def _cores() -> set[int]:
    try:
        return os.sched_getaffinity(0)
    except AttributeError:  # not on macOS
        return set(range(os.cpu_count() or 1))


def _processor() -> str:
    """The processor's model name."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if names:
            return str(names[0]).strip()
    if platform.system() == "Darwin":
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.machine()
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The commit of the code, with "+" where it was changed since."""
    commit = _output("git", "rev-parse", "--short=10", "HEAD")
    if not commit:
        return "unknown"
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    return commit + ("+" if changed else "")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "none"


def _output(*command: str) -> str:
    """What a command prints; "" where it fails."""
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return result.stdout.strip()
