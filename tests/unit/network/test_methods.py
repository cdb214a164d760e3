"""The table of what rush in R calls how: every name in it is there, and a test with real workers uses it.

That is all that can be read off the tests; whether they look closely enough, it does not say.
"""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

import rush_executor

ROOT = Path(__file__).parents[3]
METHODS: Any = runpy.run_path(str(ROOT / "docs" / "_ext" / "rush_methods.py"))["METHODS"]
NAMES = sorted({name for method in METHODS for name in method.here})
TESTS = [*(ROOT / "tests" / "acceptance").glob("test_network*.py"), ROOT / "tests" / "acceptance" / "test_snapshots.py"]


def names_in_tests() -> set[str]:
    """What the bodies of tests name: attributes of anything, and what was imported."""
    found: set[str] = set()
    for path in TESTS:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                found |= {part.attr for part in ast.walk(node) if isinstance(part, ast.Attribute)}
                found |= {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
    return found


def test_every_name_is_there() -> None:
    """Whoever comes from R and looks a method up finds it."""
    assert len(METHODS) > 50
    for name in NAMES:
        home: object = rush_executor
        for part in name.split("."):
            home = getattr(home, part)


def test_every_method_is_used_by_a_test() -> None:
    """And whoever adds one to the table tests it."""
    used = names_in_tests()
    assert "no_such_method" not in used
    assert [name for name in NAMES if name.rpartition(".")[2] not in used] == []
