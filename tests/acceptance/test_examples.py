"""Every file of `examples/` runs as a newcomer would run it: by its path, from wherever they are.

A new example is found and run; `ARGUMENTS` makes one quick, `CLAIMS` says what it must print.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.acceptance.programs import REPOSITORY, Terminal, environment

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))
QUICKSTART = REPOSITORY / "examples" / "quickstart.py"

NOTEBOOK = REPOSITORY / "examples" / "notebook.ipynb"
RUN_NOTEBOOK = """
import sys
import nbclient
import nbformat

notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""

# Five processes that each import scikit-learn in development mode take their time where others want the cores as well.
EXAMPLE_DEADLINE_S = 115.0

ARGUMENTS = {
    "quickstart.py": ["--files", "12", "--workers", "2"],
    "rush_decentralised.py": ["--tasks", "200"],
    "random_search.py": ["--tasks", "100", "--workers", "3"],
    "median_stopping.py": ["--networks", "10", "--rounds", "4", "--workers", "2"],
    "adbo.py": ["--budget", "6", "--initial", "4", "--workers", "2", "--out", "."],
}
# What it makes; anything else must be gone.
FILES = {"adbo.py": ["adbo_best.svg", "adbo_timeline.svg"]}
CLAIMS = {
    "asyncio_gather.py": [
        r"Answers  0: 168, 1: 168, 2: 168 \.\.\.\n",
        r"Given up 13: sorry\n",
        # Had the event loop stood still, it would have had as many turns as there were answers.
        r"Loop     \d{2,} turns in \d+\.\d s",
        r"Again    168\n",
    ],
    "quickstart.py": [
        r"one process  25 % 50 % 75 % 100 %\n",
        r"workers      25 % 50 % 75 % 100 %\n",
        r"Read     12 files, [\d,]+ lines, [\d,]+ functions",
        r"Killed   worker \d+ by SIGKILL, half way through, in the middle of \S+: worker \d+ did it again\n",
        r"Time     \d+\.\d\d s in one process, \d+\.\d\d s with workers",
        r"Result   nothing lost: 12 of 12 reports, all equal",
    ],
    "exceptions.py": [
        r"10 x apple: 3\.50\n",
        r"10 x fig: we have no 'fig'\n",
        r"10 x quince: quince has no price, but 'ask', because could not convert string to float: 'ask'\n",
        r"in the worker: raise PriceError\(fruit, price\) from error\n",
        # The user's lines stand in the traceback itself, not only in the text that the worker sent along.
        r"(?s)in result\n.*, in cost\n    raise PriceError\(fruit, price\) from error\n(?!.*, in )",
        # The worker's and this package's own frames do not.
        r'(?s)\A(?!.*File "[^"]*rush_executor)',
    ],
    "rush_centralised.py": [
        r"TaskTable: 2 tasks x 5 columns\n",
        r" 3   5   8  finished  [a-z2-7]{13}\n",
        r" 4   6  10  finished  [a-z2-7]{13}\n",
    ],
    "rush_decentralised.py": [
        # Each worker may be at one more when the last one that was wanted finishes.
        r"\n20[0-3] tasks, \d+ of them began where another worker had been\n",
        r"by worker: \d+, \d+, \d+, \d+\n",
        r"lowest: y = \S+ at \(-?\d+\.\d{4}, -?\d+\.\d{4}\)\n",
    ],
    "random_search.py": [
        r"10[0-2] points; lowest: y = \d+\.\d{4} at",
        r"worker [a-z2-7]{8} +\d+ points  #",
    ],
    "median_stopping.py": [
        r"10 networks, \d+ of them trained for all 4 rounds\n",
        r"round  1   10 networks  #{60}\n",
        r"(10|[1-3]\d) rounds instead of 40: \d+% of the work was saved\n",
        r"best: \d+\.\d% of the digits read, after [1-4] rounds",
    ],
    "sklearn_grid_search.py": [
        r"Handwritten digits: 9 settings, each fitted to 3 parts of 600 images\n",
        r"in this process +\d+\.\d\d s\nloky, with its start +\d+\.\d\d s\nrush, with its start +\d+\.\d\d s\n",
        r"All four found the same 9 scores, to the last bit\.\n",
        r"Best: \{'C': \d+, 'gamma': 0\.001\}, 9\d\.\d% in the search, 9\d\.\d% of new images\n",
        r"The forest reads 9\d\.\d% of new images\n",
    ],
    "adbo.py": [
        # Without any knowledge the loss would be 0.66.
        r"Asynchronous, decentralised: [67] evaluations in \d+\.\d\d s, lowest loss 0\.[1-4]",
        r"Batches, centralised: 6 evaluations in \d+\.\d\d s, lowest loss 0\.[1-4]",
        r"all +6 +\d+\.\d\d s +\d\d\.\d%\n",
        r"drawn: adbo_best\.svg\ndrawn: adbo_timeline\.svg\n",
    ],
}


def test_every_example_is_listed() -> None:
    """In the tutorial's table, which README calls all examples; and what it says to install is all that is imported."""
    text = (REPOSITORY / "docs" / "tutorial" / "index.md").read_text()
    table, _, below = text.partition("\n\n`sklearn")
    assert set(re.findall(r"^\| `(\w+\.py)` \|", table, re.MULTILINE)) == {path.name for path in EXAMPLES}
    assert f"`{NOTEBOOK.name}`" in below
    needy = {path.name for path in EXAMPLES if re.search("(?m)^(import|from) (sklearn|joblib)", path.read_text())}
    assert set(re.findall(r"`(\w+\.py)`", "`sklearn" + below)) == needy


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_does_what_it_claims(path: Path, tmp_path: Path, eventually: Callable[..., object]) -> None:
    """Exit code 0, its claims on stdout, nothing on stderr, no process and no stray file; from another directory."""
    mark = f"rush-test-{uuid.uuid4()}"
    run = run_example(path, directory=tmp_path, EXAMPLE_MARK=mark, TMPDIR=str(tmp_path))
    assert run.returncode == 0, run.stdout + run.stderr
    # In development mode asyncio tells of each turn that took long, as all do where others want the cores.
    assert re.sub(r"Executing <(?:Task|Handle) .* took [\d.]+ seconds\n", "", run.stderr) == ""
    for claim in CLAIMS.get(path.name, []):
        assert re.search(claim, run.stdout), f"{claim!r} is not in:\n{run.stdout}"
    eventually(lambda: not processes_with(mark), deadline_s=2.0)
    made = sorted(tmp_path.iterdir())
    assert [file.name for file in made] == FILES.get(path.name, [])
    for picture in made:
        assert picture.read_text().rstrip().endswith("</svg>")
        assert "Asynchronous, decentralised" in picture.read_text()


def test_the_notebook_runs(tmp_path: Path) -> None:
    """Headless, from top to bottom, in a kernel that knows nothing; as it is kept, it holds no output."""
    pytest.importorskip("nbclient", reason="it comes with the extra `ecosystem`")
    pytest.importorskip("ipykernel", reason="it comes with the extra `ecosystem`")
    kept = json.loads(NOTEBOOK.read_text())
    assert not [cell for cell in kept["cells"] if cell.get("outputs") or cell.get("execution_count")]
    notebook = tmp_path / NOTEBOOK.name
    notebook.write_text(NOTEBOOK.read_text())
    run = subprocess.run(
        [sys.executable, "-c", RUN_NOTEBOOK, str(notebook)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment(),
        timeout=EXAMPLE_DEADLINE_S,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    outputs = [output for cell in json.loads(notebook.read_text())["cells"] for output in cell.get("outputs", [])]
    printed = ["".join(output.get("text", "")) for output in outputs if output["output_type"] == "stream"]
    results = ["".join(output["data"]["text/plain"]) for output in outputs if output["output_type"] == "execute_result"]
    assert results == [
        "'mean distance 24.88'",
        "'mean end 0.81'",
        "[-4, -2, -22]",
    ]
    assert "return 1 / (step - 3)\n" in printed
    # A bar, by tqdm: a notebook is no terminal, but it shows one.
    assert re.search(r"walks: 100%\|.*\| 400/400 ", "".join(printed))


def test_quickstart_draws_a_bar_on_a_terminal(tmp_path: Path) -> None:
    """With rich and a terminal there is a real progress bar."""
    code, text = Terminal([sys.executable, str(QUICKSTART), "--files", "4"], directory=tmp_path).finish()
    assert code == 0
    assert text.count("━" * 40) >= 2
    assert "nothing lost: 4 of 4" in text


def test_quickstart_needs_no_rich(tmp_path: Path) -> None:
    """The bar is a luxury: without rich, a terminal is shown what a file is shown."""
    (tmp_path / "rich.py").write_text("raise ImportError('not here')")
    text = f"import runpy, sys; sys.path.insert(0, {str(tmp_path)!r}); sys.argv[1:] = ['--files', '4']; "
    text += f"runpy.run_path({str(QUICKSTART)!r}, run_name='__main__')"
    code, text = Terminal([sys.executable, "-c", text], directory=tmp_path).finish()
    assert code == 0
    assert text.count(" 100 %\n") == 2


def test_quickstart_tells_a_difference_by_its_exit_code(tmp_path: Path) -> None:
    """A demonstration that could not fail would show nothing: with wrong results it does fail."""
    honest = "return os.getpid(), analyse(file)"
    source = QUICKSTART.read_text()
    assert source.count(honest) == 1
    forged = tmp_path / "quickstart.py"
    forged.write_text(source.replace(honest, f"{honest}._replace(n_lines=-1)"))
    run = run_example(forged, directory=tmp_path)
    assert (run.returncode, run.stderr) == (1, "")
    assert "WRONG    12 reports differ" in run.stdout


def run_example(path: Path, *, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        # In development mode, what is left open, or is deprecated, is told on stderr. Its checks of the memory are for
        # extensions, and take long.
        [sys.executable, "-X", "dev", str(path), *ARGUMENTS.get(path.name, [])],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment(PYTHONMALLOC="pymalloc", **variables),
        timeout=EXAMPLE_DEADLINE_S,
        check=False,
    )


def processes_with(mark: str) -> list[psutil.Process]:
    """Processes that have inherited this mark, whoever their parent is by now."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("EXAMPLE_MARK") == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found
