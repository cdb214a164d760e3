"""References to what was scattered: an object that was sent once, and that any number of tasks take as an argument.

Knows neither pickles nor where the object is kept. A client's session makes them, `CloudPickler` writes them down,
`WorkerUnpickler` puts the object in their place.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from rush_executor.errors import PayloadError

__all__ = ["Home", "RushReference", "find_scattered"]


class Home(Protocol):
    """Whoever makes and reads what references stand for."""

    def load_scattered(self, reference: RushReference) -> Any: ...


class RushReference:
    """Stands for an object that was given to `RushExecutor.scatter`.

    As an argument of a task, or anywhere inside of one, it becomes the object: each task gets one of its own, whose
    large arrays share their memory with those of other tasks on the machine until somebody writes to them. The object
    is kept until nothing refers to this any more, and no task needs it.
    """

    __slots__ = ("__weakref__", "_when_dropped", "body", "home", "ident", "nested")

    def __init__(
        self,
        ident: str,
        body: bytes,
        nested: tuple[RushReference, ...],
        *,
        home: Home,
        when_dropped: Callable[[str], object],
    ) -> None:
        # The name under which it is kept, what is kept there, the references in it, and who has made it.
        self.ident = ident
        self.body = body
        self.nested = nested
        self.home = home
        self._when_dropped = when_dropped

    def result(self) -> Any:
        """The object, or rather one like it: what a task would get."""
        return self.home.load_scattered(self)

    def __reduce__(self) -> NoReturn:
        raise PayloadError(
            "a reference is good as an argument of a task of its executor, or as a part of one, or of a function, and "
            "nowhere else"
        )

    def __del__(self) -> None:
        # May run in any thread, at any moment.
        self._when_dropped(self.ident)

    def __repr__(self) -> str:
        return f"<RushReference {self.ident}>"


def find_scattered(ident: str) -> Any:
    """Stands in pickles for what a reference becomes; unpicklers put their own in its place."""
    raise PayloadError(f"what was scattered as {ident} is not to be had here")
