"""`current_executor`: tasks that submit tasks to the network that they are run by.

    client                server                 agent                    worker A                  worker B
    submit(parent)  --->  queue  ------------------------------ claim --> parent
                          queue  <--- push ----------------------------   submit(child)
                                                 looks at the slot <----  "may be waiting"
                                                 forks B  ------------------------------------->  (no worker was free)
                          queue  ---------------------------------------------------- claim ---->  child
                          inbox of A's client  <------------------------------------- finish ----
                                                                          result()
                                                 tells B to leave <-----  "is waiting for nobody"
    result()        <---  inbox  <---------------------------- finish --  end of parent

A task that submits tasks is a client of its own, for as long as it runs: its session is opened by the first
`current_executor()` and closed when the task ends, after what it has submitted. If the worker dies, the server forgets
that client with it. Called in worker processes alone; the threads are those of any session.
"""

from __future__ import annotations

import concurrent.futures
import weakref
from collections.abc import Callable
from typing import Any, cast

from rush_executor._client.future import RushFuture
from rush_executor._client.session import Nesting, Session
from rush_executor._config import HIGHEST_PRIORITY
from rush_executor._executor.executor import TaskExecutor, make_encoder
from rush_executor._payload import EncodedFunction
from rush_executor._protocol.ids import new_id
from rush_executor._protocol.records import TaskOptions
from rush_executor._shared.directory import SharedDirectory
from rush_executor._worker.here import Here, here
from rush_executor.errors import PayloadError

__all__ = ["NestedExecutor", "current_executor"]


def current_executor() -> NestedExecutor:
    """In a task: an executor on the network by which the task is run.

    A task may submit to it and wait, in whatever way, also where all workers do so: while a task waits, its agent keeps
    one worker more. What it submits runs before what the clients of the network have submitted with the same priority:
    its priority is by default that of the task plus one, and `max_retries` is that of the task.

    The task ends when what it has submitted has ended; if it fails, what no worker has claimed is cancelled. If it is
    killed, exceeds its time limit or loses its worker, what it has submitted ends at once.

    Returns:
        An Executor. Its ``shutdown``, and leaving its ``with`` block, wait for what was submitted through it.

    Raises:
        RuntimeError: It is not called in a task of an executor.
        NetworkLostError: The network is not there any more.
    """
    place = here()
    client = place.task_client(lambda: _TaskSession(place)) if place is not None else None
    if client is None:
        raise RuntimeError(
            "current_executor() is for code that a RushExecutor runs as a task, in the process of its worker. Here, "
            "make an executor: RushExecutor(). In a worker of a Rush network, push tasks with worker.push_tasks()"
        )
    session = cast("_TaskSession", client)
    return NestedExecutor(session.session, session.options)


class NestedExecutor(TaskExecutor):
    """The executor of a task; see `current_executor`."""

    def __init__(self, session: Session, options: TaskOptions) -> None:
        self._session = session
        self._options = options
        self._is_shut_down = False
        # Those that are pending are referred to by the session.
        self._futures: weakref.WeakSet[RushFuture] = weakref.WeakSet()

    @property
    def _max_workers(self) -> int:
        return max(1, self._session.n_workers())

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:  # noqa: FBT001, FBT002
        """Takes no more tasks; `current_executor` gives another executor that does.

        Args:
            wait: Return when what was submitted through this one has ended. The task waits for it in any case.
            cancel_futures: Cancel what no worker has claimed.
        """
        self._is_shut_down = True
        pending = [future for future in self._futures if not future.done()]
        if cancel_futures:
            self._session.cancel_all(pending)
        if wait:
            concurrent.futures.wait(pending)

    def _end_now(self, how: str) -> None:  # noqa: ARG002 - the Futures say who killed them
        self.shutdown(wait=False, cancel_futures=True)
        for future in list(self._futures):
            future.kill()

    def _send(
        self,
        function: EncodedFunction | PayloadError,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        options: TaskOptions,
        *,
        is_chunk: bool = False,
    ) -> RushFuture:
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future = super()._send(function, args, kwargs, options, is_chunk=is_chunk)
        del args, kwargs
        self._futures.add(future)
        return future

    def __repr__(self) -> str:
        return f"<current_executor network={self._session.config.network_id!r}>"


class _TaskSession:
    """The session of the running task, and its keeper: there are no workers to be kept, they are the network's.

    Attributes:
        session: The session.
        options: Of what the task submits.
    """

    def __init__(self, place: Here) -> None:
        self._place = place
        options = place.options()
        # In front of all that is queued with the priority of the task: a tree is finished before the next is begun.
        # Otherwise every task of the queue would be begun, and wait for what stands behind the others.
        self.options = options._replace(priority=min(options.priority + 1, HIGHEST_PRIORITY))
        config = place.config
        client_id = new_id()
        files = SharedDirectory.make(client_id)
        nesting = Nesting(worker_id=place.worker_id, epoch=place.epoch, tell_pending=self._tell_pending)
        try:
            self.session = Session(
                config, make_encoder(config, files), b"", client_id, self, nesting=nesting, files=files
            )
        except BaseException:
            if files is not None:
                files.remove()
            raise

    def _tell_pending(self, is_pending: bool) -> None:  # noqa: FBT001 - a setter
        self._place.tell_waiting(is_waiting=is_pending)

    def end(self, *, is_failure: bool) -> None:
        """The task has ended: waits for what it has submitted; after a failure only for what is being run."""
        self.session.shut_down(why="the end of the task", cancel_futures=is_failure)
        self.session.join()
        self._place.tell_waiting(is_waiting=False)

    # As `WorkerKeeper`.

    agent_id = ""

    def has_workers(self) -> bool:
        """The one that runs the task, at least."""
        return True

    def check(self) -> None:
        """Ends what the task has submitted when nobody waits for the task any more: its client has left, or was lost.

        The task fails by that, its own client goes, and those that it was waiting for see the same.
        """
        if not self._place.is_awaited():
            self.session.shut_down(why="the end of the task's client", abort=True)

    def end_agent(self) -> None:
        """There is none."""

    def stop(self, *, now: bool, is_in_vain: Callable[[], bool]) -> None:
        """There is nothing to be stopped."""

    def check_server(self) -> None:
        """The server is not this worker's, so nothing is known of it."""

    def close(self) -> None:
        """There is nothing to be closed."""

    def disown(self) -> None:
        """There is nothing to let go."""
