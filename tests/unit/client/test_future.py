"""A RushFuture is the standard library's Future, made at less cost."""

from __future__ import annotations

import concurrent.futures
import threading

import pytest

from rush_executor._client.future import RushFuture, _Condition
from tests.unit.client.owner import Owner


def future() -> RushFuture:
    return RushFuture(Owner(), "c-1", "f", None)


def test_has_what_the_base_class_sets() -> None:
    """Its `__init__` stands in for the base's: of this Python's Future nothing may be missing, nor begin otherwise."""
    standard, own = vars(concurrent.futures.Future()), vars(future())
    assert own.keys() >= standard.keys()
    for name in standard.keys() - {"_condition"}:
        assert own[name] == standard[name], name


def test_condition_has_what_the_standard_one_sets() -> None:
    """And so for the condition: what it does not keep itself comes from its lock."""
    standard, own = threading.Condition(), _Condition()
    for name in vars(standard):
        assert hasattr(own, name), name
    assert vars(own).keys() <= vars(standard).keys()


def test_condition_waits_and_is_woken() -> None:
    """Also where the lock is held more than once."""
    condition, woken = _Condition(), threading.Event()

    def wait() -> None:
        with condition, condition:
            ready.set()
            condition.wait()
        woken.set()

    ready = threading.Event()
    thread = threading.Thread(target=wait)
    thread.start()
    assert ready.wait(30)
    with condition:
        assert not woken.is_set()
        condition.notify_all()
    assert woken.wait(30)
    thread.join()
    with pytest.raises(RuntimeError):
        condition.notify()


def test_done() -> None:
    """In each state as the base class says."""
    pending, finished, failed, cancelled = future(), future(), future(), future()
    finished.set_result(1)
    failed.set_exception(ValueError())
    cancelled._resolve_cancelled()
    for each in (pending, finished, failed, cancelled):
        assert each.done() == concurrent.futures.Future.done(each)
    running = future()
    running.set_running_or_notify_cancel()
    assert not running.done()
