"""Finds joblib's own tests of `Parallel`, and puts the backend "rush" in the place of "loky".

The tests are read from the installed joblib, never copied. Wherever they say "loky" or `LokyBackend`, also in the
scripts that they run, they are made to say "rush" and `RushBackend`; `joblib_on_rush` is the module that results, here
and in workers. What is left out, and what is expected in other words, is said by the tables of `test_joblib_suite.py`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple
from unittest import mock

import joblib.parallel
import pytest
from joblib import ParallelBackendBase
from joblib.parallel import BACKENDS

import rush_executor
import rush_executor.joblib
from rush_executor.joblib import RushBackend
from rush_executor.joblib._pools import POOLS

__all__ = ["Difference", "JoblibTests", "define_tests"]

_HOME = "joblib.test.test_parallel"
# Scripts have to find the package, which need not be installed.
_IMPORT = f"""\
import sys
sys.path.append({str(Path(rush_executor.__file__).parents[1])!r})
import rush_executor.joblib
"""
# joblib gives its scripts some seconds, which a busy machine may exceed.
_PATIENCE = 6
# Also what is to come at once; below the 20 s that it takes to wait for tasks under way, which sleep for 10 s each.
_ELAPSED = "time.time() - t_start"
_SOON_S = 15


class Difference(NamedTuple):
    """A test that applies, but for what it expects.

    Attributes:
        reason: Why the backend does otherwise.
        words: What to put in the place of these constants of the test, or of parts of its texts.
    """

    reason: str
    words: Mapping[Any, Any]


class JoblibTests:
    """joblib's tests of `Parallel`, as the installed joblib has them.

    Args:
        exclusions: Reasons why tests cannot apply, by their names.
        differences: By the same.
    """

    def __init__(self, exclusions: Mapping[str, str], differences: Mapping[str, Difference]) -> None:
        self._exclusions = exclusions
        self._differences = differences
        module = importlib.import_module("tests.ecosystem.joblib_on_rush")
        self._own_backends: dict[str, Any] = module.OWN_BACKENDS
        namespace = vars(module)
        namespace["get_reusable_executor"] = _Reusable
        namespace["check_subprocess_call"] = _patient(namespace["check_subprocess_call"])
        tree, origin = _source()
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and node.name in differences:
                words = differences[node.name].words
                _execute(_Translator(words).visit(ast.Module([node], [])), origin, namespace)
        self.tests = {
            name: self._adapted(name, value)
            for name, value in namespace.items()
            if name.startswith("test_") and inspect.isfunction(value)
        }

    @contextlib.contextmanager
    def in_lokys_place(self) -> Iterator[None]:
        """Has the backend be joblib's default, and those known that the tests have registered."""
        with _as_default(), mock.patch.dict(BACKENDS, self._own_backends):
            yield

    def unmatched(self) -> list[str]:
        """Entries of the tables that name no test."""
        return sorted((self._exclusions.keys() | self._differences.keys()) - self.tests.keys())

    def _adapted(self, name: str, test: Any) -> Any:
        marks = [self._listed(mark) for mark in getattr(test, "pytestmark", ())]
        # What loky is expected to fail this backend must pass, or have an entry for.
        marks = [mark for mark in marks if mark.name not in ("skipif", "xfail", "thread_unsafe", "no_cover")]
        if name in self._exclusions:
            marks.append(pytest.mark.skip(reason=self._exclusions[name]).mark)

        @functools.wraps(test)
        def adapted(*args: Any, **kwargs: Any) -> None:
            try:
                test(*args, **kwargs)
            except pytest.skip.Exception as skip:
                if joblib.cpu_count() == 1:
                    raise
                pytest.fail(f"joblib skips {name} ({skip}): it needs an entry in the table of exclusions")

        adapted.pytestmark = marks  # type: ignore[attr-defined]
        adapted.is_about_rush = _is_about_rush  # type: ignore[attr-defined]
        return adapted

    def _listed(self, mark: Any) -> Any:
        """A test that runs with each of joblib's backends is not to run with those that other tests register."""
        if mark.name != "parametrize" or mark.args[1] is not BACKENDS:
            return mark
        names = [name for name in BACKENDS if name not in {*self._own_backends, "loky"}]
        return pytest.mark.parametrize(mark.args[0], names).mark


def define_tests(namespace: dict[str, Any]) -> dict[str, Any]:
    """Defines joblib's tests, as they are apart from the names of the backend, in a module's namespace.

    Returns:
        The backends that they have registered, which joblib is made to forget.
    """
    tree, origin = _source()
    namespace.update(RushBackend=RushBackend)
    # With them, each of the workers would import all of dask.distributed for one test, which is left out.
    without_dask = mock.patch.dict(sys.modules, {"distributed": None})
    with mock.patch.dict(BACKENDS), _as_default(), without_dask:
        # They make a list of all backends. This one does not come on top of loky.
        del BACKENDS["loky"]
        known = set(BACKENDS)
        _execute(_Translator({}).visit(tree), origin, namespace)
        return {name: BACKENDS[name] for name in set(BACKENDS) - known}


class _Translator(ast.NodeTransformer):
    """Says rush where it says loky, and makes relative imports absolute.

    Args:
        words: Other constants to be replaced, or parts of texts.
    """

    def __init__(self, words: Mapping[Any, Any] = MappingProxyType({})) -> None:
        self._words = words

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST:
        if not node.level:
            return node
        name = importlib.util.resolve_name("." * node.level + (node.module or ""), _HOME.rpartition(".")[0])
        return ast.ImportFrom(name, node.names, 0)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return ast.Name("RushBackend", node.ctx) if node.id == "LokyBackend" else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return ast.Name("RushBackend", node.ctx) if node.attr == "LokyBackend" else self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        if ast.unparse(node.left) == _ELAPSED:
            node.comparators = [ast.Constant(_SOON_S)]
        return self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        value = node.value
        if isinstance(value, str):
            value = value.replace("loky", "rush")
            value = value.replace("from joblib import Parallel", f"{_IMPORT}from joblib import Parallel")
        for old, new in self._words.items():
            if isinstance(old, str) and isinstance(value, str):
                value = value.replace(old, new)
            elif value is old:
                value = new
        return ast.copy_location(ast.Constant(value), node)


class _Reusable:
    """What the tests ask of loky's executor, which is there for all calls."""

    def __init__(self, *, reuse: bool) -> None:
        assert reuse
        self._open = list(POOLS._open)

    def shutdown(self) -> None:
        rush_executor.joblib.shutdown()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reusable) and bool(self._open) and self._open == other._open

    __hash__ = None  # type: ignore[assignment]


def _source() -> tuple[ast.Module, str]:
    spec = importlib.util.find_spec(_HOME)
    assert spec is not None
    assert spec.origin is not None
    return ast.parse(Path(spec.origin).read_text(encoding="utf-8")), spec.origin


def _execute(tree: ast.Module, origin: str, namespace: dict[str, Any]) -> None:
    exec(compile(ast.fix_missing_locations(tree), origin, "exec", dont_inherit=True), namespace)


def _as_default() -> contextlib.AbstractContextManager[object]:
    return mock.patch.object(joblib.parallel, "DEFAULT_BACKEND", "rush")


def _patient(check_subprocess_call: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(check_subprocess_call)
    def patient(cmd: list[str], timeout: float | None = 5, **expected: Any) -> None:
        check_subprocess_call(cmd, timeout=None if timeout is None else _PATIENCE * timeout, **expected)

    return patient


def _is_about_rush(parameters: Mapping[str, Any]) -> bool:
    """Whether a test with these parameters is about this backend, and not about another one of joblib's alone."""
    backends = [value for name, value in parameters.items() if "backend" in name and not isinstance(value, int)]
    return not backends or any(map(_is_rush, backends))


def _is_rush(backend: object) -> bool:
    if isinstance(backend, ParallelBackendBase):
        return isinstance(backend, RushBackend)
    # None is the default, which it is here; then the name of a subclass that the tests make.
    return backend in (None, "rush", "back_compat_backend")
