"""Finds copied code in Python's standard library: in one process, then on all cores while a worker is killed.

Every function of every file is reduced to a fingerprint that does not see names, so that code which was copied and
renamed shows. The same work is done twice, in this process and then by a `RushExecutor`; half way through the second
run a worker is killed with SIGKILL while it is at a file. At the end both results are compared: the exit code is 0
only if they are equal.

Run it from anywhere, it needs nothing else: the executor starts a private server.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import os
import signal
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import NamedTuple

from rush_executor import RushExecutor

try:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
except ImportError:
    Progress = None  # type: ignore[assignment,misc]

LIBRARY = Path(sysconfig.get_path("stdlib"))
# What was installed beside the library, its tests, which not every installation has, and tables that are no code.
SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings"}
# Lines that a function must have for its twin to be a finding.
SHORTEST_COPY = 5
BRANCHES = (ast.If, ast.For, ast.While, ast.IfExp, ast.BoolOp, ast.ExceptHandler, ast.comprehension, ast.match_case)


# ------------------------------------------------------------------------------------------------- the work on one file


class Function(NamedTuple):
    """What is known of one function: where it stands, its size in lines and branches, its fingerprint."""

    name: str
    line: int
    n_lines: int
    n_branches: int
    fingerprint: str


class Report(NamedTuple):
    """What is known of one file."""

    n_lines: int
    functions: list[Function]


def analyse(file: str) -> Report:
    """Parses one file of the library and fingerprints its functions."""
    source = (LIBRARY / file).read_bytes()
    nodes = ast.walk(ast.parse(source))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return Report(source.count(b"\n"), [describe(node) for node in functions])


def describe(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Function:
    return Function(
        name=function.name,
        line=function.lineno,
        n_lines=(function.end_lineno or function.lineno) - function.lineno + 1,
        n_branches=sum(isinstance(node, BRANCHES) for node in ast.walk(function)),
        fingerprint=hashlib.blake2b(" ".join(skeleton(function, {})).encode(), digest_size=12).hexdigest(),
    )


def skeleton(node: ast.AST, names: dict[str, int]) -> Iterator[str]:
    """A syntax tree as words, each name replaced by a number: 1 for the first that occurs, 2 for the second, ..."""
    yield type(node).__name__
    for field, value in ast.iter_fields(node):
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, ast.AST):
                yield from skeleton(part, names)
            elif field in ("id", "arg", "name"):
                yield str(names.setdefault(part, len(names) + 1))
            elif part is not None:
                yield repr(part)


# ------------------------------------------------------------------------------------------------ the work on all files


def run_here(files: dict[str, int]) -> dict[str, Report]:
    """The reference: one file after the other, in this process."""
    reports = {}
    with progress("one process", sum(files.values())) as advance:
        for file, size in files.items():
            reports[file] = analyse(file)
            advance(size)
    return reports


class Killed(NamedTuple):
    """The worker that was killed, and the file that it was at."""

    pid: int
    file: str


class Outcome(NamedTuple):
    """What the workers have made: the reports, who did which file, and who was killed."""

    reports: dict[str, Report]
    done_by: dict[str, int]
    killed: Killed | None


def run_on_workers(files: dict[str, int], n_workers: int | None) -> Outcome:
    """The same work by an executor, with a mishap half way through."""
    reports, done_by, killed = {}, {}, None
    n_bytes, total = 0, sum(files.values())
    with (
        tempfile.TemporaryDirectory() as board,
        RushExecutor(n_workers) as executor,
        progress("workers", total) as advance,
    ):
        futures = {file: executor.submit(analyse_at, board, file) for file in files}
        file_of = {future: file for file, future in futures.items()}
        for future in as_completed(file_of):
            file = file_of[future]
            done_by[file], reports[file] = future.result()
            advance(files[file])
            n_bytes += files[file]
            if killed is None and n_bytes >= total / 2:
                killed = kill_a_worker(Path(board), futures)
    return Outcome(reports, done_by, killed)


def analyse_at(board: str, file: str) -> tuple[int, Report]:
    """What a worker runs: it leaves word which file it begins, for whoever wants to kill it there."""
    with Path(board, str(os.getpid())).open("a") as log:
        log.write(f"{file}\n")
    return os.getpid(), analyse(file)


def kill_a_worker(board: Path, futures: dict[str, Future[tuple[int, Report]]]) -> Killed | None:
    """Kills a worker that is at a file: of these the one that has begun last."""
    time.sleep(0.002)  # the worker whose result we have just seen is about to begin its next file
    for log in sorted(board.iterdir(), key=lambda path: path.stat().st_mtime_ns, reverse=True):
        *_, file = log.read_text().split("\n")[:-1] or [""]
        if file and not futures[file].done():
            os.kill(int(log.name), signal.SIGKILL)
            return Killed(int(log.name), file)
    return None


# -------------------------------------------------------------------------------------------------------- what is shown


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar: of rich on a terminal, of four numbers where there is no rich or no terminal."""
    if Progress is not None and sys.stdout.isatty():
        columns = (TextColumn("{task.description:<12}"), BarColumn(40), TaskProgressColumn(), TimeElapsedColumn())
        with Progress(*columns) as bar:
            task = bar.add_task(title, total=total)
            yield lambda size: bar.advance(task, size)
        return
    done, shown = 0, 0
    print(f"{title:<12}", end="", flush=True)

    def advance(size: int) -> None:
        nonlocal done, shown
        done += size
        while shown < 4 * done // total:
            shown += 1
            print(f" {25 * shown} %", end="", flush=True)

    try:
        yield advance
    finally:
        print()


def show_findings(reports: dict[str, Report]) -> None:
    functions = [(file, function) for file, report in reports.items() for function in report.functions]
    print(f"Read     {len(reports):,} files, {sum(r.n_lines for r in reports.values()):,} lines, ", end="")
    print(f"{len(functions):,} functions of {LIBRARY}")
    if not functions:
        return
    file, function = max(functions, key=lambda pair: pair[1].n_branches)
    print(f"Found    the most branches: {function.n_branches}, in {place(file, function)}")
    places = defaultdict(list)
    for file, function in functions:
        if function.n_lines >= SHORTEST_COPY:
            places[function.fingerprint].append((file, function))
    copied = [found for found in places.values() if len({file for file, _ in found}) > 1]
    print(f"         code that stands in more than one file, but for the names: {len(copied)} functions")
    longest = {}
    for (file, function), (other, copy), *_ in sorted(copied, key=lambda found: -found[0][1].n_lines):
        longest.setdefault((file, other), (function, copy))
    for (file, other), (function, copy) in list(longest.items())[:3]:
        print(f"         {function.n_lines:>4} lines: {place(file, function)} = {place(other, copy)}")


def place(file: str, function: Function) -> str:
    return f"{function.name} ({file}:{function.line})"


def find_files(n_files: int | None) -> dict[str, int]:
    """The library's files and their sizes, the largest first: then all workers are busy until the end."""
    sizes = {}
    for path in LIBRARY.rglob("*.py"):
        relative = path.relative_to(LIBRARY)
        if not SKIPPED.intersection(relative.parts):
            # Reading them here makes it fair: no run meets a cold disk.
            sizes[str(relative)] = len(path.read_bytes())
    largest_first = sorted(sizes, key=lambda file: (-sizes[file], file))
    return {file: sizes[file] for file in largest_first[:n_files]}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, metavar="N", help="only the N largest files")
    parser.add_argument("--workers", type=int, metavar="N", help="worker processes (default: one per CPU)")
    options = parser.parse_args()
    files = find_files(options.files)

    began_at = time.perf_counter()
    expected = run_here(files)
    here_s = time.perf_counter() - began_at

    began_at = time.perf_counter()
    reports, done_by, killed = run_on_workers(files, options.workers)
    workers_s = time.perf_counter() - began_at

    print()
    show_findings(expected)
    if killed is None:
        print("Killed   nobody: half way through, no worker was at a file any more")
    elif done_by[killed.file] == killed.pid:
        print(f"Killed   worker {killed.pid} by SIGKILL, half way through, when it had just done {killed.file}")
    else:
        print(f"Killed   worker {killed.pid} by SIGKILL, half way through, in the middle of {killed.file}: ", end="")
        print(f"worker {done_by[killed.file]} did it again")
    times = f"{here_s:.2f} s in one process, {workers_s:.2f} s with workers, their start and end included"
    print(f"Time     {times}: {here_s / workers_s:.2f} times as fast, on {os.cpu_count()} CPUs")
    if reports != expected:
        wrong = [file for file in files if reports.get(file) != expected[file]]
        print(f"WRONG    {len(wrong)} reports differ from those of the one process: {', '.join(wrong[:5])}")
        return 1
    print(f"Result   nothing lost: {len(reports)} of {len(files)} reports, all equal to those of the one process")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
