"""How functions travel: by name where that leads to the very same function, else by value and by digest."""

from __future__ import annotations

import functools
import json
import math
import sys
import threading
import types
from typing import Any

import cloudpickle
import pytest

from rush_executor._payload import Encoder
from rush_executor.errors import PayloadError
from tests.unit.payload import support
from tests.unit.payload.support import NETWORK, Accumulator, Outer, Sides, module


@pytest.mark.parametrize(
    "fn",
    [support.add, json.dumps, len, math.sqrt, Outer.Inner.twice, Outer, Outer.Inner, int, dict, ValueError],
    ids=lambda fn: fn.__qualname__,
)
def test_importable_goes_by_reference(fn: Any) -> None:
    """A function, builtin or class that its module holds under its name is not pickled, and is found again."""
    sides = Sides()
    function = sides.encoder.encode_function(fn)
    assert (function.digest, function.body) == (None, None)
    payload = sides.encoder.encode_call("t", function, (), {})
    assert sides.decoder.decode_call("c", "t", payload).fn is fn
    assert len(function.spec) < 100


def test_code_keeps_its_file() -> None:
    """A traceback from the worker shows the user's lines, also those of a function inside a function."""

    def outer() -> Any:
        return lambda: 1

    arrived = Sides().call(support.same, outer)
    assert arrived.__code__.co_filename == __file__
    assert arrived().__code__.co_filename == __file__
    assert arrived.__code__ == outer.__code__


def test_reference_is_made_once() -> None:
    """The second `submit` of an importable function costs a look, not a new reference."""
    encoder = Encoder(NETWORK)
    assert encoder.encode_function(support.add) is encoder.encode_function(support.add)


def local() -> Any:
    def inner() -> int:
        return 1

    return inner


@pytest.mark.parametrize(
    "fn",
    [
        lambda: 1,
        local(),
        module("def f(): return 1")["f"],
        module("def f(): return 1", "__mp_main__")["f"],
        module("class f:\n    def __new__(cls): return 1")["f"],
        functools.partial(support.same, 1),
        functools.partial(lambda value: value, 1),
        functools.partial(Accumulator(), 1),
    ],
)
def test_others_go_by_value(fn: Any) -> None:
    """Lambdas, local functions, those of the main module and callable objects are stored by digest, and run."""
    sides = Sides()
    function = sides.function(fn)
    assert function.digest is not None
    assert len(function.digest) == 32
    assert len(function.spec) < 64
    assert sides.call(fn) == 1


@pytest.mark.parametrize("name", ["__main__", "__mp_main__"])
def test_main_never_by_reference(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Functions and classes that the main module really holds go by value: a worker's main module is another one."""
    main = types.ModuleType(name)
    exec("def f(): return g()\ndef g(): return C().n\nclass C:\n    n = 1", main.__dict__)
    monkeypatch.setitem(sys.modules, name, main)
    for fn in (main.f, main.C):
        function = Encoder(NETWORK).encode_function(fn)
        assert function.digest is not None
        assert function.body is not None
        # Were it by name, the name would stand in the pickle as a global to import.
        assert f"{name}\x94\x8c\x01".encode() not in function.body


def test_mp_main_runs_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a child of multiprocessing the main module is called __mp_main__; its functions work all the same."""
    main = types.ModuleType("__mp_main__")
    exec("def f(): return C().n\nclass C:\n    n = 1", main.__dict__)
    monkeypatch.setitem(sys.modules, "__mp_main__", main)
    sides = Sides()
    payload = sides.encode(main.f)
    instance = sides.encode(support.same, main.C())
    monkeypatch.delitem(sys.modules, "__mp_main__")
    assert sides.run(payload) == 1
    assert sides.run(instance).n == 1


def test_identity_is_verified_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that was replaced in its module goes by value from then on, and by name when it is back."""
    sides = Sides()
    original = support.add
    assert sides.encoder.encode_function(original).digest is None
    monkeypatch.setattr(support, "add", lambda a, b: -1)
    assert sides.encoder.encode_function(original).digest is not None
    assert sides.call(original, 1, 2) == 3
    monkeypatch.undo()
    assert sides.encoder.encode_function(original).digest is None


def test_worker_looks_up_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that a task has replaced in a worker means the new function, as unpickling by name would."""
    sides = Sides()
    payload = sides.encode(support.add, 1, 2)
    assert sides.run(payload) == 3
    monkeypatch.setattr(support, "add", lambda a, b: -1)
    assert sides.run(payload) == -1


def test_registered_modules_go_by_value() -> None:
    """`cloudpickle.register_pickle_by_value` is obeyed, also after the function was sent by name."""
    encoder = Encoder(NETWORK)
    assert encoder.encode_function(support.add).digest is None
    cloudpickle.register_pickle_by_value(support)
    try:
        assert encoder.encode_function(support.add).digest is not None
    finally:
        cloudpickle.unregister_pickle_by_value(support)
    assert encoder.encode_function(support.add).digest is None


def test_unloaded_module_goes_by_value(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function whose module is not in sys.modules cannot be imported elsewhere."""
    fn = module("def f(): return 1", "tests_no_such_module")["f"]
    sides = Sides()
    assert sides.function(fn).digest is not None
    assert sides.call(fn) == 1


def test_digest_tells_closures_apart() -> None:
    """Pickled at every call of encode_function: the same content has the same digest, another content another."""
    encoder = Encoder(NETWORK)
    box = [1]
    fn = lambda: box[0]  # noqa: E731
    first = encoder.encode_function(fn)
    assert encoder.encode_function(fn).digest == first.digest
    box[0] = 2
    assert encoder.encode_function(fn).digest != first.digest


def test_digest_is_stable() -> None:
    """Running a function does not change its digest: its state in the workers hangs on that."""
    main = module(
        "import dataclasses, abc, enum, functools\n"
        "names = {'b', 'a', 'c'}\n"
        "@dataclasses.dataclass\n"
        "class Point:\n    x: int = 0\n    def norm(self) -> float: return abs(self.x)\n"
        "class Base(abc.ABC):\n    @abc.abstractmethod\n    def f(self): ...\n"
        "class Child(Base):\n    def f(self): return super().__init__()\n"
        "class Color(enum.Enum):\n    RED = 1\n"
        "@functools.cache\n"
        "def helper(n: int) -> int: return n if n < 2 else helper(n - 1)\n"
        "def task(n=3):\n"
        "    Child().f(), isinstance(1, Base), Color.RED.name, Point.__annotations__, task.__annotations__\n"
        "    return helper(n) + Point(n).norm() + len(names)\n"
    )
    encoder = Encoder(NETWORK)
    digests = set()
    for n in range(60):
        digests.add(encoder.encode_function(main["task"]).digest)
        main["task"](n)
    assert len(digests) == 1


def test_body_is_fetched_once() -> None:
    """A worker fetches and unpickles a function once, however many tasks call it."""
    sides = Sides()
    fn = lambda value: value + 1  # noqa: E731
    payloads = [sides.encode(fn, i) for i in range(5)]
    assert [sides.run(payload) for payload in payloads] == [1, 2, 3, 4, 5]
    assert sides.n_fetched == 1
    first, second = (sides.decoder.decode_call("c", "client-1:7", payload).fn for payload in payloads[:2])
    assert first is second


def test_bodies_are_apart_by_client() -> None:
    """What one client's function has done to its closure is not seen by another client's."""
    sides = Sides()
    fn = module("seen = []\ndef f(x):\n    seen.append(x)\n    return list(seen)")["f"]
    payload = sides.encode(fn, 1)
    assert sides.run(payload, "a") == [1]
    assert sides.run(payload, "a") == [1, 1]
    assert sides.run(payload, "b") == [1]


@pytest.mark.parametrize("make", [Accumulator, lambda: Accumulator().add, lambda: functools.partial(Accumulator())])
def test_state_of_callables_is_an_argument(make: Any) -> None:
    """Callable objects, bound methods and partials come fresh to each task; their body is fetched once."""
    sides = Sides()
    payload = sides.encode(make(), 5)
    assert [sides.run(payload) for _ in range(3)] == [5, 5, 5]
    assert sides.n_fetched == 1


def test_gone_body_is_an_error_of_the_task() -> None:
    """A function whose body the server has lost fails the call with a text that says so."""
    sides = Sides()
    payload = sides.encode(lambda: 1)
    sides.bodies.clear()
    with pytest.raises(PayloadError, match="gone from the server"):
        sides.run(payload)


def test_other_errors_of_fetch_pass() -> None:
    """A lost connection while fetching is no fault of the payload."""
    sides = Sides()
    payload = sides.encode(lambda: 1)

    def lost(client_id: str, digest: str) -> bytes:
        raise ConnectionError("lost")

    sides.decoder._functions._fetch = lost
    with pytest.raises(ConnectionError):
        sides.decoder.decode_call("c", "client-1:7", payload)


def test_function_key() -> None:
    """The same function has the same key, in every payload, sealed or not, without anything being unpickled."""
    for secret in (None, b"s"):
        sides = Sides(secret)
        add = sides.function(support.add)
        keys = {
            sides.decoder.function_key(sides.encoder.encode_call(task, add, args, {}))
            for task, args in (("a", (1,)), ("b", ([1] * 1000,)), ("c", (support.Bomb("key"),)))
        }
        assert keys == {add.spec}
        assert sides.decoder.function_key(sides.encode(lambda: 1)) != add.spec
    assert support.Bomb.exploded == []


@pytest.mark.parametrize("payload", [b"", b"\0", b"\0\0", b"\0\0\xffabc", b"\x80abc", b"\x80" + bytes(33)])
def test_function_key_of_damaged(payload: bytes) -> None:
    """Bytes that are no payload have no key, and do not raise."""
    assert Sides().decoder.function_key(payload) == b""


def test_many_threads_encode() -> None:
    """Eight threads submit at once, by name and by value."""
    sides = Sides()
    wrong = []

    def work(n: int) -> None:
        for i in range(200):
            payload = sides.encode(support.add, n, i)
            if sides.encoder.encode_function(lambda: n).digest is None or b"add" not in payload:
                wrong.append((n, i))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_caches_are_bounded() -> None:
    """A client that sends ever new functions does not fill the memory of client or worker."""
    sides = Sides()
    for n in range(1100):
        fn = module(f"def f{n}(): return {n}", "bounded")[f"f{n}"]
        sys.modules["bounded"] = types.ModuleType("bounded")
        setattr(sys.modules["bounded"], f"f{n}", fn)
        try:
            assert sides.call(fn) == n
        finally:
            del sys.modules["bounded"]
    assert len(sides.encoder._references) <= 1024
    assert len(sides.decoder._functions._references) <= 1024
    for n in range(300):
        assert sides.call(lambda n=n: n) == n
    assert len(sides.decoder._functions.space("client-1").functions) <= 256


def test_repr_is_short() -> None:
    """Neither body nor secret stand in a repr."""
    sides = Sides(b"topsecret")
    function = sides.function(lambda: 1)
    assert "topsecret" not in repr((function, sides.encoder, sides.decoder, vars(sides.encoder)))
    assert len(repr(function)) < 200


def test_lru_cached_function_of_main() -> None:
    """A helper under functools.cache in a script works, recursion included, and keeps its cache between tasks."""
    namespace = module(
        "import functools\n"
        "calls = []\n"
        "@functools.lru_cache(maxsize=50)\n"
        "def fib(n):\n"
        "    'Doc.'\n"
        "    calls.append(n)\n"
        "    return n if n < 2 else fib(n - 1) + fib(n - 2)\n"
        "def task(n): return fib(n), len(calls), fib.__doc__, fib.cache_parameters()['maxsize']\n"
    )
    sides = Sides()
    assert sides.call(namespace["task"], 20) == (6765, 21, "Doc.", 50)
    assert sides.call(namespace["task"], 20) == (6765, 21, "Doc.", 50)
    assert sides.call(namespace["fib"], 20) == 6765
    assert namespace["calls"] == []
