"""The thread that runs done-callbacks.

A callback may wait for another Future of the same executor; on the thread that resolves Futures it would wait for
ever. One thread, so that callbacks run in the order in which their Futures were resolved. Started when the first
callback is added; ended by `close`, after all that was queued before it.
"""

from __future__ import annotations

import queue
import threading

from rush_executor._client.future import RushFuture

__all__ = ["CallbackThread"]


class CallbackThread:
    """Runs the callbacks of Futures, one after the other."""

    def __init__(self) -> None:
        self._futures: queue.SimpleQueue[RushFuture | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def start(self) -> bool:
        """Starts the thread, if it is not there.

        Called when a callback is added: when it is to run, the interpreter may be on its way out, and from Python 3.12
        on no thread can be started then.

        Returns:
            Whether there is a thread.
        """
        with self._lock:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="rush-callbacks", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    return False
                self._thread = thread
            return True

    def run(self, future: RushFuture) -> None:
        """Has the callbacks of a Future run; on this thread if there can be none for them any more."""
        if self.start():
            self._futures.put(future)
        else:
            future._run_callbacks()

    def is_current(self) -> bool:
        """Whether it is a callback that asks."""
        return threading.current_thread() is self._thread

    def close(self) -> None:
        """Waits for the callbacks that are queued, unless it is one of them that calls."""
        with self._lock:
            thread = self._thread
        if thread is None or thread is threading.current_thread():
            return
        self._futures.put(None)
        thread.join()
        with self._lock:
            if self._thread is thread:
                self._thread = None

    def _run(self) -> None:
        while (future := self._futures.get()) is not None:
            future._run_callbacks()
            # Not kept until the next one comes.
            del future
