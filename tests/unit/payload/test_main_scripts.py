"""The rules of namespaces and classes between two real processes: a script run by path, and a worker."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from tests.unit.payload.remote import run_script

HEAD = "from tests.unit.payload.remote import Worker\n"

SCRIPTS = {
    "globals set by an initializer": """
        model = None
        def init(value):
            global model, extra
            model, extra = value, value + 1
        def predict(x):
            return model * x + extra
        with Worker() as w:
            w.initialize(init, 10)
            assert w.call(predict, 2) == 31
            assert w.call(lambda: model) == 10
            assert model is None
    """,
    "exception of a class of __main__": """
        class MyError(Exception):
            def __init__(self, code, *, detail):
                super().__init__(f"code {code}")
                self.code, self.detail = code, detail
        def fail():
            raise MyError(3, detail="d")
        with Worker() as w:
            try:
                w.call(fail)
            except MyError as e:
                assert (e.code, e.detail, str(e)) == (3, "d", "code 3")
                assert "raise MyError" in str(e.__cause__)
                names = []
                tb = e.__traceback__
                while tb:
                    names.append(tb.tb_frame.f_code.co_name)
                    tb = tb.tb_next
                assert names[-1] == "fail", names
            else:
                raise AssertionError
    """,
    "class attributes are the worker's state": """
        class Counter:
            n = 0
            limit = 10
            @classmethod
            def bump(cls):
                cls.n += 1
                return cls.n, cls.limit
            def me(self):
                return type(self).bump()
        def task(counter):
            return counter.me()
        def other():
            return Counter.bump()
        with Worker() as w:
            assert w.call(task, Counter()) == (1, 10)
            assert w.call(task, Counter()) == (2, 10)
            assert w.call(other) == (3, 10)
            Counter.limit = 20
            assert w.call(task, Counter()) == (4, 20)
            assert Counter.n == 0
    """,
    "methods redefined in the client": """
        class Model:
            def run(self): return 1
        def task(m): return m.run()
        with Worker() as w:
            m = Model()
            assert w.call(task, m) == 1
            Model.run = lambda self: 2
            assert w.call(task, m) == 2
            class Model(Model):
                def run(self): return 3 + super().run()
            assert w.call(task, Model()) == 5
            assert w.call(task, m) == 2
    """,
    "a returned instance leaves the client's class alone": """
        class Result:
            total = 0
            def __init__(self, x): self.x = x
            def double(self): return 2 * self.x, factor
        factor = 1
        def task(x):
            global factor
            factor = 99
            Result.total += x
            return Result(x)
        double = Result.double
        with Worker() as w:
            r = w.call(task, 4)
            assert type(r) is Result
            assert Result.total == 0
            assert Result.double is double
            factor = 7
            assert r.double() == (8, 7)
    """,
    "isinstance, enums, dataclasses, slots, properties, abstract classes": """
        import abc, enum, dataclasses
        class Color(enum.Enum):
            RED = 1
            BLUE = 2
            def lower(self): return self.name.lower()
        @dataclasses.dataclass(frozen=True)
        class Point:
            x: int
            y: int = 2
            @property
            def sum(self): return self.x + self.y
        class Base(abc.ABC):
            @abc.abstractmethod
            def area(self): ...
        class Square(Base):
            __slots__ = ("side",)
            def __init__(self, side): self.side = side
            def area(self): return self.side ** 2
        def task(color, point, shape):
            assert isinstance(color, Color) and color is Color.RED
            assert isinstance(point, Point) and isinstance(shape, Base)
            return color, point, shape, point.sum, shape.area(), color.lower()
        with Worker() as w:
            for _ in range(3):
                c, p, s, total, area, lower = w.call(task, Color.RED, Point(1), Square(3))
                assert c is Color.RED and p == Point(1) and type(s) is Square and s.side == 3
                assert (total, area, lower) == (3, 9, "red")
    """,
    "functions defined after the start, redefined, and nested": """
        with Worker() as w:
            def f(x): return x + 1
            assert w.call(f, 1) == 2
            def f(x): return g(x) * 2
            def g(x): return x
            assert w.call(f, 4) == 8
            def g(x): return -x
            assert w.call(f, 4) == -8
            assert w.call(lambda: [f(i) for i in range(3)]) == [0, -2, -4]
    """,
    "old and new versions interleaved": """
        SCALE = 1
        def task(x): return x * SCALE
        calls = []
        with Worker() as w:
            for SCALE in (1, 2, 3):
                calls += [(w.encode(task, x), x * SCALE) for x in range(3)]
            for (payload, bodies), expected in calls[::-1] + calls + calls[::2]:
                assert w.send(payload, bodies) == expected
    """,
    "counter, functions under functools.cache, generators and coroutines": """
        import functools, asyncio
        counter = 0
        @functools.cache
        def slow(n):
            global counter
            counter += 1
            return n * n
        def task(n): return slow(n), counter
        async def co(n): return slow(n)
        def run(n): return asyncio.run(co(n))
        def gen(n): yield from range(n)
        def consume(n): return list(gen(n))
        with Worker() as w:
            assert w.call(task, 3) == (9, 1)
            assert w.call(task, 3) == (9, 1)
            assert w.call(run, 4) == 16
            assert w.call(task, 4) == (16, 2)
            assert w.call(consume, 3) == [0, 1, 2]
            assert counter == 0
    """,
    "a class that counts its instances, and zero-argument super": """
        class Base:
            made = 0
            def __init__(self): Base.made += 1
        class Child(Base):
            def __init__(self):
                super().__init__()
                self.n = Base.made
        def task(): return Child().n
        def again(): return Child().n
        with Worker() as w:
            assert [w.call(task), w.call(task), w.call(again), w.call(task)] == [1, 2, 3, 4]
    """,
    "a whole script without main guard that uses modules": """
        import json as j, os.path, xml.dom.minidom
        import collections.abc
        def task(text): return j.loads(text), os.path.basename("a/b"), xml.dom.minidom.Node.ELEMENT_NODE
        with Worker() as w:
            assert w.call(task, "[1]") == ([1], "b", 1)
    """,
    "generics, named tuples, typed dicts, flags, protocols, cached properties, class hooks": """
        import enum, functools, typing
        from typing import Generic, NamedTuple, Protocol, TypedDict, TypeVar
        T = TypeVar("T")
        registry = []
        class Box(Generic[T]):
            def __init__(self, x: T) -> None: self.x = x
            @functools.cached_property
            def twice(self): return 2 * self.x
            @functools.lru_cache
            def thrice(self): return 3 * self.x
        class Pair(NamedTuple):
            a: int
            b: str = "b"
        class Movie(TypedDict):
            name: str
        class Perm(enum.Flag):
            R = enum.auto()
            W = enum.auto()
        class HasX(Protocol):
            x: int
        class Meta(type):
            def __setattr__(cls, name, value): super().__setattr__(name, value)
            @property
            def kind(cls): return "meta"
        class Base(metaclass=Meta):
            def __init_subclass__(cls, **kw): cls.inherited = True
        class Child(Base):
            pass
        class Descriptor:
            def __set_name__(self, owner, name): self.name = name
            def __get__(self, obj, cls=None): return self.name
        class Owner:
            field = Descriptor()
            __slots__ = ("__dict__", "__weakref__", "z")
        def task(box, pair, perm, child, owner):
            movie: Movie = {"name": "m"}
            return (type(box), box.twice, box.thrice(), pair, perm | Perm.W, type(child).kind, child.inherited,
                    owner.field, movie, Box[int](5).x)
        with Worker() as w:
            for _ in range(3):
                out = w.call(task, Box(3), Pair(1), Perm.R, Child(), Owner())
                assert out == (Box, 6, 9, Pair(1), Perm.R | Perm.W, "meta", True, "field", {"name": "m"}, 5), out
                assert type(out[3]) is Pair
    """,
    "large global is carried once": """
        import os
        DATA = os.urandom(3_000_000)
        def task(i): return DATA[i]
        with Worker() as w:
            f = w.encoder.encode_function(task)
            assert len(f.body) > 3_000_000
            assert w.encoder.encode_function(task).digest == f.digest
            assert len(w.encode(task, 1)[0]) < 100
            assert w.call(task, 7) == DATA[7]
            payload, _ = w.encode(task, 8)
            assert w.send(payload, {}) == DATA[8]
    """,
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_script(tmp_path: Path, name: str) -> None:
    """Each script says by its assertions what holds between a real client and a real worker process."""
    run_script(tmp_path, HEAD + textwrap.dedent(SCRIPTS[name]))
