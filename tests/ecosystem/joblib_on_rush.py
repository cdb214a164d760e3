"""joblib's tests of `Parallel`, adapted by `joblib_suite`, as a module that workers can import: see there."""

from __future__ import annotations

from typing import Any

from tests.ecosystem.joblib_suite import define_tests

# Backends that the tests register when they are imported.
OWN_BACKENDS: dict[str, Any] = define_tests(globals())
