"""scikit-learn's GridSearchCV on a RushExecutor: one line more, and the same numbers.

The grid is searched three times: in this process, on joblib's own workers ("loky"), and on those of a RushExecutor
("rush"), which stay for the forest that is trained in the end. All searches must find the same.

Needs scikit-learn: ``python -m pip install '.[examples]'``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from joblib import parallel_config
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.svm import SVC

import rush_executor.joblib  # registers the backend "rush"

N_WORKERS = 2
GRID = {"C": [0.1, 1, 10], "gamma": [1e-4, 1e-3, 1e-2]}

x, y = load_digits(return_X_y=True)
x, x_test, y, y_test = train_test_split(x, y, train_size=600, stratify=y, random_state=0)


@contextmanager
def timed(what: str) -> Iterator[None]:
    began_at = time.perf_counter()
    yield
    print(f"{what:<26}{time.perf_counter() - began_at:6.2f} s")


def search() -> GridSearchCV:
    return GridSearchCV(SVC(), GRID, cv=3).fit(x, y)


print(f"Handwritten digits: {len(GRID['C']) * len(GRID['gamma'])} settings, each fitted to 3 parts of {len(y)} images")
with timed("in this process"):
    alone = search()
with timed("loky, with its start"), parallel_config(backend="loky", n_jobs=N_WORKERS):
    on_loky = search()
with timed("rush, with its start"), parallel_config(backend="rush", n_jobs=N_WORKERS):
    on_rush = search()
with timed("rush, once more"), parallel_config(backend="rush", n_jobs=N_WORKERS):
    again = search()

scores = alone.cv_results_["mean_test_score"]
for other in (on_loky, on_rush, again):
    assert np.array_equal(other.cv_results_["mean_test_score"], scores)
print(f"All four found the same {len(scores)} scores, to the last bit.")
best = on_rush.best_params_
print(f"Best: {best}, {on_rush.best_score_:.1%} in the search, {on_rush.score(x_test, y_test):.1%} of new images")

with timed("a forest, on rush"), parallel_config(backend="rush", n_jobs=N_WORKERS):
    forest = RandomForestClassifier(100, random_state=0).fit(x, y)
print(f"The forest reads {forest.score(x_test, y_test):.1%} of new images")
rush_executor.joblib.shutdown()
