"""On the backend "rush", scikit-learn finds the numbers that it finds on joblib's own, "loky"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.svm import SVC

import rush_executor.joblib

X, Y = load_digits(return_X_y=True)
# Large enough for workers to map it.
WIDE = np.tile(X, 3)


def grid_search() -> dict[str, Any]:
    found = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [1e-3, 1e-4]}, cv=3).fit(WIDE, Y)
    scores = {key: value for key, value in found.cv_results_.items() if "score" in key and "time" not in key}
    return {**scores, "best": found.best_params_, "prediction": found.predict(WIDE[:100])}


def cross_validation() -> dict[str, Any]:
    return {"scores": cross_val_score(SVC(), X, Y, cv=4)}


def random_forest() -> dict[str, Any]:
    forest = RandomForestClassifier(30, random_state=0).fit(WIDE, Y)
    return {"importances": forest.feature_importances_, "probabilities": forest.predict_proba(WIDE[:100])}


SEARCHES: list[Callable[[], dict[str, Any]]] = [grid_search, cross_validation, random_forest]


@pytest.fixture(scope="module")
def numbers() -> dict[str, dict[str, dict[str, Any]]]:
    """By backend and search; one set of workers for all searches of a backend, as each has to import scikit-learn."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for backend in ("loky", "rush"):
        with parallel_config(backend=backend, n_jobs=2):
            found[backend] = {search.__name__: search() for search in SEARCHES}
    get_reusable_executor().shutdown(wait=True)
    rush_executor.joblib.shutdown()
    return found


def test_the_same_numbers(numbers: dict[str, Any]) -> None:
    """To the last bit. One test for all searches: run by several processes, each would have to make the numbers."""
    for name, theirs in numbers["loky"].items():
        ours = numbers["rush"][name]
        assert theirs.keys() == ours.keys()
        for key, value in theirs.items():
            assert np.array_equal(value, ours[key]), (name, key)
