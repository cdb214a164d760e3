"""Functions by value of one client and module share one namespace in a worker.

The functions here are made by exec, in namespaces that call themselves `__main__`, as a notebook's cells are.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rush_executor.errors import PayloadError
from tests.unit.payload import support
from tests.unit.payload.support import CLIENT, TASK, Sides, module, redefine


@pytest.mark.parametrize("first", ["", "model = None"])
def test_initializer_and_tasks_share_globals(first: str) -> None:
    """What an initializer puts in a global is there for tasks, whether or not the client has the global too."""
    main = module(
        f"{first}\n"
        "def init(value):\n    global model\n    model = value\n"
        "def read(): return model\n"
        "def other(): return 2 * read()\n"
    )
    sides = Sides()
    sides.initialize(main["init"], 21)
    assert sides.call(main["read"]) == 21
    assert sides.call(main["other"]) == 42
    assert sides.call(lambda: 1) == 1
    assert main.get("model") is None


def test_state_survives_between_tasks() -> None:
    """SEMANTICS 12: a counter of the main module counts on in the worker, for each function that uses it."""
    main = module(
        "counter = 0\n"
        "def bump():\n    global counter\n    counter += 1\n    return counter\n"
        "def bump_twice():\n    bump()\n    return bump()\n"
    )
    sides = Sides()
    assert [sides.call(main["bump"]) for _ in range(3)] == [1, 2, 3]
    assert sides.call(main["bump_twice"]) == 5
    assert sides.call(main["bump"]) == 6
    assert main["counter"] == 0


def test_mutable_state_survives() -> None:
    """So does what a task has put into a container, also for functions that are sent later."""
    main = module("cache = {}\ndef put(k): cache[k] = 1\ndef keys(): return sorted(cache)")
    sides = Sides()
    sides.call(main["put"], "a")
    sides.call(main["put"], "b")
    assert sides.call(main["keys"]) == ["a", "b"]


def test_redefined_helper_wins() -> None:
    """A helper that was redefined in the next cell of a notebook is the one that tasks call from then on."""
    main = module("def helper(): return 1\ndef task(): return helper()")
    sides = Sides()
    assert sides.call(main["task"]) == 1
    redefine(main, "def helper(): return 2")
    assert sides.call(main["task"]) == 2
    redefine(main, "def helper(): return 1")
    assert sides.call(main["task"]) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("def helper(x=1): return x", "def helper(x=2): return x"),
        ("def helper(*, x=1): return x", "def helper(*, x=2): return x"),
        ("def make(n):\n    def inner(): return n\n    return inner\nhelper = make(1)", "helper = make(2)"),
        ("def helper(): return helper.x\nhelper.x = 1", "helper.x = 2"),
        ("import functools\nhelper = functools.partial(int, 1)", "helper = functools.partial(int, 2)"),
        ("class helper(int):\n    def __new__(cls): return 1", "class helper(int):\n    def __new__(cls): return 2"),
        ("import functools\n@functools.cache\ndef helper(): return 1", "@functools.cache\ndef helper(): return 2"),
        ("value = [1]\ndef helper(): return value[0]", "value[0] = 2"),
        ("value = 1\ndef helper(): return value", "value = 2"),
        ("import math as m\ndef helper(): return m.floor(1.5)", "import cmath as m\nclass m:\n    floor = round"),
    ],
)
def test_each_kind_of_change_is_seen(before: str, after: str) -> None:
    """Defaults, closures, attributes, partials, classes, data, modules: what the client changes, the task sees."""
    main = module(before + "\ndef task(): return int(helper())")
    sides = Sides()
    assert sides.call(main["task"]) == 1
    redefine(main, after)
    assert sides.call(main["task"]) == 2


def test_unchanged_value_leaves_the_workers() -> None:
    """Only the name that has changed in the client is taken from it; the worker's state under others stays."""
    main = module(
        "model, scale = None, 1\ndef init():\n    global model\n    model = 10\ndef task(): return model * scale\n"
    )
    sides = Sides()
    sides.initialize(main["init"])
    assert sides.call(main["task"]) == 10
    main["scale"] = 3
    assert sides.call(main["task"]) == 30
    main["model"] = 100
    assert sides.call(main["task"]) == 300


def test_old_and_new_tasks_in_any_order() -> None:
    """`for SCALE in 1, 2, 3: submit(f)`: each task runs with the value of its submit, in whatever order they come."""
    main = module("SCALE = 0\ndef helper(x): return x * SCALE\ndef task(x): return helper(x)")
    sides = Sides()
    calls = []
    for scale in (1, 2, 3):
        main["SCALE"] = scale
        calls += [(sides.encode(main["task"], x), x * scale) for x in range(4)]
    random.Random(1).shuffle(calls)
    for payload, expected in calls * 2:
        assert sides.run(payload) == expected


def test_state_belongs_to_its_version() -> None:
    """What the initializer has loaded in place of the client's None is there for every task that was sent with None."""
    main = module("model = None\ndef init():\n    global model\n    model = 'loaded'\ndef task(): return model")
    sides = Sides()
    sides.initialize(main["init"])
    old = sides.encode(main["task"])
    main["model"] = "client's"
    new = sides.encode(main["task"])
    assert [sides.run(p) for p in (old, new, old, new, old)] == ["loaded", "client's", "loaded", "client's", "loaded"]


@given(st.lists(st.tuples(st.sampled_from("fgh"), st.integers(0, 3), st.integers(0, 3)), max_size=12), st.randoms())
def test_every_task_sees_what_it_was_sent_with(submits: list[tuple[str, int, int]], order: random.Random) -> None:
    """For any history of changes and submits and any order of execution, as long as tasks change nothing."""
    main = module(
        "A, B = 0, [0]\ndef h(): return A, B[0]\ndef g(): return h()\ndef f(n=2): return g() if n == 0 else f(n - 1)\n"
    )
    sides = Sides()
    calls = []
    for name, a, b in submits:
        main["A"], main["B"] = a, [b]
        calls.append((sides.encode(main[name]), (a, b)))
    order.shuffle(calls)
    for payload, expected in calls:
        assert sides.run(payload) == expected


def test_recursion_and_mutual_references() -> None:
    """Functions that call themselves and each other work, from whichever end they are sent."""
    main = module(
        "seen = []\n"
        "def even(n):\n    seen.append(n)\n    return n == 0 or odd(n - 1)\n"
        "def odd(n): return n != 0 and even(n - 1)\n"
        "def n_seen(): return len(seen)\n"
    )
    sides = Sides()
    assert sides.call(main["even"], 10)
    assert sides.call(main["odd"], 9)
    assert sides.call(main["even"], 2)
    assert sides.call(main["n_seen"]) == 6 + 5 + 2


def test_cycle_sent_from_both_ends_keeps_state() -> None:
    """A cycle of functions with defaults and closures is the same version whichever of them is the root."""
    main = module(
        "state = []\n"
        "def make():\n    k = 1\n    def f(x=5):\n        state.append(k)\n        return g, len(state)\n    return f\n"
        "f = make()\n"
        "def g(x=7):\n    f.calls = getattr(f, 'calls', 0) + 1\n    return f.calls\n"
        "def both(): return f()[1], g()\n"
    )
    sides = Sides()
    assert sides.call(main["g"]) == 1
    assert sides.call(main["f"])[1] == 1
    assert sides.call(main["both"]) == (2, 2)
    assert sides.call(main["g"]) == 3


def test_nested_functions_share_the_namespace() -> None:
    """A function that is made inside a task, or inside a function that is sent, sees the same globals."""
    main = module(
        "counter = 0\n"
        "def outer():\n"
        "    def inner():\n        global counter\n        counter += 1\n        return counter\n"
        "    return inner\n"
        "def task(): return outer()()\n"
        "def read(): return counter\n"
    )
    sides = Sides()
    assert sides.call(main["outer"]()) == 1
    assert sides.call(main["task"]) == 2
    assert sides.call(main["read"]) == 2


def test_functions_as_arguments_share_the_namespace() -> None:
    """So does a function that travels as an argument of another."""
    main = module(
        "counter = 0\n"
        "def bump():\n    global counter\n    counter += 1\n    return counter\n"
        "def apply(fn): return fn(), counter\n"
    )
    sides = Sides()
    assert sides.call(main["apply"], main["bump"]) == (1, 1)
    assert sides.call(main["apply"], main["bump"]) == (2, 2)
    assert sides.call(main["bump"]) == 3


def test_callables_with_state_share_the_namespace() -> None:
    """A partial is unpickled for each task, but the globals of its function are the worker's."""
    main = module(
        "import functools\n"
        "counter = 0\n"
        "def bump(by):\n    global counter\n    counter += by\n    return counter\n"
        "by_two = functools.partial(bump, 2)\n"
    )
    sides = Sides()
    assert [sides.call(main["by_two"]) for _ in range(3)] == [2, 4, 6]


def test_clients_do_not_share() -> None:
    """Two clients' main modules are two."""
    main = module("n = 0\ndef bump():\n    global n\n    n += 1\n    return n")
    sides = Sides()
    payload = sides.encode(main["bump"])
    assert [sides.run(payload, "a"), sides.run(payload, "a"), sides.run(payload, "b")] == [1, 2, 1]


def test_namespaces_of_the_same_name_do_not_share() -> None:
    """Two dicts that both claim to be `__main__` (exec, doctest) are not mixed."""
    one = module("value = 1\ndef f(): return value")
    two = module("value = 2\ndef f(): return value")
    sides = Sides()
    first, second = sides.encode(one["f"]), sides.encode(two["f"])
    for _ in range(2):
        assert sides.run(first) == 1
        assert sides.run(second) == 2


def test_namespaces_without_a_name() -> None:
    """Functions whose globals have no `__name__` at all work and keep apart."""
    made: list[dict[str, Any]] = [{}, {}]
    for n, namespace in enumerate(made):
        exec(f"value = {n}\ndef f(): return value", namespace)
    sides = Sides()
    assert [sides.call(namespace["f"]) for namespace in made] == [0, 1]


def test_builtins_are_there() -> None:
    """A function can use builtins, import, and look at its globals."""
    main = module("def f(x):\n    import os\n    return len(x), os.sep, __name__, sorted(globals())[0]")
    assert Sides().call(main["f"], "ab") == (2, "/", "__main__", "__builtins__")


def test_deleted_stays_deleted() -> None:
    """A task may delete a global; the next function that is sent does not bring it back."""
    main = module(
        "big = 1\n"
        "def drop():\n    global big\n    del big\n"
        "def has():\n    try:\n        return bool(big)\n    except NameError:\n        return False\n"
    )
    sides = Sides()
    assert sides.call(main["has"])
    sides.call(main["drop"])
    assert not sides.call(main["has"])


def test_failed_load_changes_nothing() -> None:
    """A function that cannot be unpickled leaves the helpers of the others as they were."""
    main = module("def helper(): return 1\ndef task(): return helper()")
    sides = Sides()
    assert sides.call(main["task"]) == 1
    main["bad"] = support.Restoring(ValueError("no"))
    redefine(main, "def helper(): return 2\ndef broken(): return helper(), bad")
    with pytest.raises(PayloadError):
        sides.call(main["broken"])
    redefine(main, "def helper(): return 1")
    payload = sides.encode(main["task"])
    assert sides.run(payload) == 1


def test_value_that_cannot_be_compared() -> None:
    """A global whose pickling fails in the worker is taken from the client each time it is sent."""
    main = module("def f(): return value.n\ndef g(): return value.n + 10")
    main["value"] = OneWay(1)
    sides = Sides()
    assert sides.call(main["f"]) == 1
    main["value"] = OneWay(2)
    assert sides.call(main["g"]) == 12
    assert sides.call(main["f"]) == 2


class OneWay:
    """Can be pickled only where it was made."""

    def __init__(self, n: int, *, is_original: bool = True) -> None:
        self.n = n
        self.is_original = is_original

    def __reduce__(self) -> Any:
        if not self.is_original:
            raise SystemExit("not again")
        return one_way, (self.n,)


def one_way(n: int) -> OneWay:
    return OneWay(n, is_original=False)


def test_reconstructor_uses_the_new_helper() -> None:
    """Code that runs during a load (a `__reduce__`'s function) sees the client's code of now."""
    main = module(
        "def helper(n): return n\n"
        "def rebuild(n): return helper(n)\n"
        "class Sent:\n    def __reduce__(self): return rebuild, (5,)\n"
        "def task(x): return x\n"
    )
    sides = Sides()
    assert sides.call(main["task"], main["Sent"]()) == 5
    redefine(main, "def helper(n): return -n")
    assert sides.call(main["task"], main["Sent"]()) == -5


def test_reconstructor_may_change_globals() -> None:
    """What such code sets in a global counts like what a task sets."""
    main = module(
        "n_built = 0\n"
        "def rebuild():\n    global n_built\n    n_built += 1\n    return n_built\n"
        "class Sent:\n    def __reduce__(self): return rebuild, ()\n"
        "def task(x): return x, n_built\n"
    )
    sides = Sides()
    assert [sides.call(main["task"], main["Sent"]()) for _ in range(3)] == [(1, 1), (2, 2), (3, 3)]


def test_home_client_is_not_forgotten() -> None:
    """However many clients a worker serves, what the initializer has loaded stays."""
    main = module("model = None\ndef init():\n    global model\n    model = 1\ndef read(): return model")
    sides = Sides()
    sides.initialize(main["init"])
    payload = sides.encode(main["read"])
    for n in range(100):
        assert sides.run(payload, f"other-{n}") is None
    assert sides.run(payload) == 1
    assert len(sides.decoder._functions._spaces) <= 32


def test_anonymous_namespaces_are_bounded() -> None:
    """A library that makes each function in a globals dict of its own does not fill the worker, nor push main out."""
    main = module("n = 0\ndef bump():\n    global n\n    n += 1\n    return n")
    sides = Sides()
    sides.call(main["bump"])
    kept = [module(f"def f(): return {n}", "lambdify") for n in range(200)]
    for n, namespace in enumerate(kept):
        assert sides.call(namespace["f"]) == n
    assert len(sides.decoder._functions.space(CLIENT)._anonymous) <= 64


def test_returned_function_is_at_home() -> None:
    """A function of a client's module that a task returns works on the client's own globals."""
    sides = Sides()
    fn = lambda: LIMIT  # noqa: E731
    back = sides.call(support.same, fn)
    assert back.__globals__ is globals()
    assert back() == LIMIT


LIMIT = 5


def test_decoded_call_of_cached_function_is_the_same_object() -> None:
    """A function that was called in between by another version is still unpickled only once."""
    main = module("n = 1\ndef f(): return n")
    sides = Sides()
    old = sides.encode(main["f"])
    main["n"] = 2
    new = sides.encode(main["f"])
    first = sides.decoder.decode_call(CLIENT, TASK, old).fn
    assert sides.decoder.decode_call(CLIENT, TASK, new).fn() == 2
    assert sides.decoder.decode_call(CLIENT, TASK, old).fn is first
    assert sides.n_fetched == 2
