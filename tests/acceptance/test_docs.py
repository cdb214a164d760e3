"""The documentation does what it says: its Python runs, and its reference leaves nothing out.

The ```python blocks of a page are one program, run from top to bottom in a process of its own, in an empty directory. A
block whose first line begins with `# not run` is left out; it says there why.
"""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from rush_executor import RushExecutor, errors
from rush_executor._cli import COMMANDS
from rush_executor._ledger import server
from rush_executor.testing import keys_left

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
CONFIGURATION = ROOT / "docs" / "reference" / "configuration.md"
COMMAND_LINE = ROOT / "docs" / "reference" / "cli.md"
ERRORS = ROOT / "docs" / "reference" / "errors.md"

# What a page needs beside the extra `test`, with which these tests are run on most interpreters.
NEEDS = {
    "docs/how-to/with-other-libraries.md": [
        "adaptive",
        "dask",
        "dynesty",
        "emcee",
        "more_executors",
        "nevergrad",
        "pipefunc",
        "tqdm",
    ],
}

# What is measured on a page again and again is done once here: words of its program, and those in their place.
QUICK = {
    "docs/decisions/0006-lone-submit-sends-itself-bursts-go-through-the-dispatcher.md": ("range(5)", "range(1)"),
}

# A page takes some seconds: executors start, and some tasks sleep. One that takes as long as this hangs.
DEADLINE_S = 115.0

NOT_RUN = "# not run"
_FENCE = re.compile(r"^ *(?P<ticks>`{3,})(?P<info>[^`\n]*)\n(?P<body>.*?)^ *(?P=ticks) *$", re.DOTALL | re.MULTILINE)


def blocks(text: str, language: str) -> list[tuple[int, str]]:
    """The fenced blocks of a language, each with the number of its first line."""
    return [
        (text.count("\n", 0, match.start("body")) + 1, textwrap.dedent(match["body"]))
        for match in _FENCE.finditer(text)
        if match["info"].strip() == language
    ]


def program(text: str) -> str:
    """What a page's blocks are together; every line stands where it stands on the page, for the traceback."""
    lines: list[str] = []
    for first_line, body in blocks(text, "python"):
        if not body.startswith(NOT_RUN):
            lines += [""] * (first_line - 1 - len(lines)) + body.splitlines()
    return "\n".join(lines) + "\n" if lines else ""


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


RUNNABLE = [page for page in PAGES if program(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
def test_a_pages_python_runs(page: Path, tmp_path: Path) -> None:
    """Whoever pastes the blocks of a page into a file, one after the other, can run it."""
    for name in NEEDS.get(name_of(page), []):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed: it comes with the extra `ecosystem`")
    text = program(page.read_text(encoding="utf-8"))
    if name_of(page) in QUICK:
        long, quick = QUICK[name_of(page)]
        assert text.count(long) == 1
        text = text.replace(long, quick)
    script = tmp_path / "page.py"
    script.write_text(text, encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RUSH_")}
    run = subprocess.run(
        [sys.executable, str(script)],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert run.returncode == 0, f"{name_of(page)}: exit code {run.returncode}\n{run.stdout}\n{run.stderr}"


def test_readme_and_journey_are_among_the_pages_that_run() -> None:
    """A search that finds no block would hold nothing."""
    assert {"README.md", "docs/explanation/journey-of-a-task.md"} <= {name_of(page) for page in RUNNABLE}


def test_a_program_keeps_the_lines_of_its_page() -> None:
    """An error in a block is reported with the page's own line number; other languages and `# not run` are left out."""
    page = """\
# Title

```python
a = 1
```

```python
# not run: why
b
```

- In a list:

  ```python
  c = 3
  ```

```text
d
```
"""
    assert program(page).splitlines() == ["", "", "", "a = 1", *[""] * 10, "c = 3"]


def test_workers_on_another_machine(server_url: str, tmp_path: Path) -> None:
    """The README's lines for workers elsewhere, with a server that is there in place of its `redis://server`."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("redis://server:6379/0", server_url)
    [commands] = [body for _, body in blocks(readme, "sh") if "rush-executor worker" in body]
    [code] = [body for _, body in blocks(readme, "python") if "max_workers=0" in body]
    export, worker = commands.splitlines()
    name, _, secret = export.removeprefix("export ").partition("=")
    environment = {**os.environ, name: secret}
    command = [sys.executable, "-m", *shlex.split(worker)]
    command[2] = "rush_executor"
    with subprocess.Popen([*command, "--workers", "2"], cwd=tmp_path, env=environment, stderr=subprocess.PIPE) as agent:
        try:
            run = subprocess.run(
                [sys.executable, "-c", code],
                env=environment,
                capture_output=True,
                text=True,
                timeout=DEADLINE_S,
                check=False,
            )
        finally:
            agent.send_signal(signal.SIGTERM)
        assert (run.returncode, run.stdout, run.stderr) == (0, "6\n", "")
        assert agent.wait(DEADLINE_S) == 0
    assert keys_left(server_url) == []


def test_every_argument_has_its_row() -> None:
    """The page on configuration names every argument of the executor and of `options`."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    functions: list[Callable[..., object]] = [RushExecutor, RushExecutor.options]
    names = [n for function in functions for n in inspect.signature(function).parameters if n != "self"]
    assert [name for name in names if f"| `{name}` |" not in text] == []


def test_every_command_has_its_section() -> None:
    """The page on the command line prints every command from its parser, under its name, and the exit codes."""
    text = COMMAND_LINE.read_text(encoding="utf-8")
    printed = re.findall(r"^## (\w+)\n\n```\{command\} (\w+)\n```$", text, re.MULTILINE)
    assert printed == [(name, name) for name in COMMANDS]
    assert "```{exit-codes}" in text


def test_every_setting_of_the_private_server_has_its_row() -> None:
    """The page on configuration names every line of the private server's configuration file, with its value."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    assert [name for name, value in server._CONFIG.items() if f"| `{name} {value}` |" not in text] == []


def test_every_error_has_its_place() -> None:
    """The page on errors prints every class, and has no section for one that is gone."""
    text = ERRORS.read_text(encoding="utf-8")
    printed = re.findall(r"autoexception:: rush_executor\.errors\.(\w+)", text)
    assert sorted(printed) == sorted(errors.__all__)
