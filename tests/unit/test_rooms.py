"""The rules of the rooms that import-linter cannot see, checked on the text of the sources.

Who may import whom is in `pyproject.toml` (`make check`). An allowance here is a line with its reason, and one that
nothing needs any more fails, too.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import rush_executor

PACKAGE = Path(rush_executor.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
LUA_FILES = sorted(PACKAGE.rglob("*.lua"))

# Files that may touch the environment of the process, besides `_config.py`, and why that is not configuration.
MAY_TOUCH_ENVIRONMENT: dict[str, str] = {
    "_ledger/server.py": "hands its own environment on to the server, but for what is addressed to Rush",
}
# Files that may spell a key, besides the key schema, and why.
MAY_SPELL_KEYS: dict[str, str] = {}

ENVIRONMENT = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
KEY = "rush:{"


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def touches_environment(tree: ast.AST) -> Iterator[int]:
    """The lines that use `os.environ` or one of its relatives, or import them."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="os"), attr=name) if name in ENVIRONMENT:
                yield node.lineno
            case ast.ImportFrom(module="os", names=aliases) if ENVIRONMENT & {alias.name for alias in aliases}:
                yield node.lineno


def spells_key(tree: ast.AST) -> Iterator[int]:
    """The lines with a string that contains the beginning of a key; docstrings may speak of keys."""
    docstrings = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in docstrings and isinstance(node.value, str | bytes):
            text = node.value if isinstance(node.value, str) else node.value.decode("latin-1")
            if KEY in text:
                yield node.lineno


def imports_package_root(tree: ast.AST) -> Iterator[int]:
    """The lines that import the package's public face, and with it every room."""
    submodules = {path.stem for path in PACKAGE.iterdir()}
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases) if any(alias.name == "rush_executor" for alias in aliases):
                yield node.lineno
            case ast.ImportFrom(module="rush_executor", names=aliases):
                if any(alias.name not in submodules for alias in aliases):
                    yield node.lineno


def offences(rule: Callable[[ast.AST], Iterator[int]]) -> dict[str, list[int]]:
    """The lines of each file that break the rule."""
    found = {name_of(path): list(rule(ast.parse(path.read_text(encoding="utf-8")))) for path in MODULES}
    return {name: lines for name, lines in found.items() if lines}


def test_only_config_touches_the_environment() -> None:
    """`_config.py` alone reads the environment."""
    found = offences(touches_environment).keys() - {"_config.py"}
    assert found <= MAY_TOUCH_ENVIRONMENT.keys(), "read it in _config.py, or add the file above with its reason"
    assert MAY_TOUCH_ENVIRONMENT.keys() <= found, "an allowance that nothing needs"


def test_only_the_key_schema_spells_keys() -> None:
    """`Keys` alone spells keys: a key made elsewhere may miss the hash tag, and nobody would delete it."""
    found = offences(spells_key).keys() - {"_protocol/keys.py"}
    assert found <= MAY_SPELL_KEYS.keys(), "let Keys spell it"
    assert MAY_SPELL_KEYS.keys() <= found, "an allowance that nothing needs"


@pytest.mark.parametrize("path", LUA_FILES, ids=name_of)
def test_scripts_spell_no_key(path: Path) -> None:
    """Scripts get the prefix or the keys from `Keys`; their comments may speak of keys."""
    code = re.sub(r"--[^\n]*", "", path.read_text(encoding="utf-8"))
    assert KEY not in code


def test_rooms_do_not_import_the_public_face() -> None:
    """`from rush_executor import ...` in a room would import every other room: a knot that the layers don't show."""
    allowed = {"__main__.py", "testing.py", "joblib.py"}
    assert {
        name for name in offences(imports_package_root) if name not in allowed and not name.startswith("_cli")
    } == set()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_every_module_says_what_it_is_for(path: Path) -> None:
    """Each module's docstring tells what the room knows, what it must not know and who calls it."""
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("rule", "code"),
    [
        (touches_environment, "import os\nhome = os.environ['HOME']"),
        (touches_environment, "import os\nhome = os.getenv('HOME')"),
        (touches_environment, "from os import environ"),
        (spells_key, "key = f'rush:{{{network}}}:bell'"),
        (spells_key, "key = 'rush:{%s}:bell' % network"),
        (spells_key, "key = b'rush:{' + network"),
        (imports_package_root, "import rush_executor"),
        (imports_package_root, "from rush_executor import RushExecutor"),
    ],
)
def test_the_rules_see_what_they_forbid(rule: Callable[[ast.AST], Iterator[int]], code: str) -> None:
    """A rule that finds nothing anywhere holds nothing."""
    assert list(rule(ast.parse(code)))


def test_the_rules_allow_what_is_meant() -> None:
    """Docstrings speak of keys, and submodules are imported from the package."""
    tree = ast.parse('"""Reads `rush:{network}:bell`."""\nfrom rush_executor import errors\nimport os\nos.getpid()')
    assert [*touches_environment(tree), *spells_key(tree), *imports_package_root(tree)] == []
