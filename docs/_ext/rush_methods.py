"""Which method of rush in R is called what here: one row each, printed as a table whose names link to the reference.

A name that is not there is a warning, and so an error in `make check`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

__all__ = ["METHODS", "Method"]


class Method(NamedTuple):
    """A row.

    Attributes:
        in_r: What rush in R calls it; of both of its generations.
        here: What it is called here: names below `rush_executor`, such as ``Rush.push_tasks``.
        note: What is different, if anything is.
    """

    in_r: str
    here: tuple[str, ...]
    note: str = ""


METHODS: Final = (
    Method("`rsh()`, `Rush$new()`", ("Rush", "rsh"), "without a `url`, a private server"),
    Method("`RushWorker$new()`", ("RushWorker",), "a worker by hand, at a prompt"),
    Method("`rush_plan()`, `rush_config()`", ("rush_plan", "rush_config"), "a context manager as well"),
    Method("`rush_available()`, `remove_rush_plan()`", ("rush_available", "remove_rush_plan")),
    Method("`$start_local_workers()`", ("Rush.start_local_workers",), "returns the ids at once"),
    Method("`$start_workers()`, `$start_remote_workers()`", ("Rush.start_workers",), "launchers in place of mirai"),
    Method("`$worker_script()`, `$create_worker_script()`", ("Rush.worker_script",), "no secret in the text"),
    Method("`start_worker()`", ("start_worker",), "or `rush-executor worker` in a shell"),
    Method("`$wait_for_workers()`", ("Rush.wait_for_workers",), "raises `TimeoutError`"),
    Method("`$stop_workers()`", ("Rush.stop_workers",), "`grace=` for those that do not come to an end"),
    Method("`$restart_workers()`, `$restart_local_workers()`", ("Rush.restart_workers",)),
    Method("`$detect_lost_workers()`", ("Rush.detect_lost_workers",), "not needed: they are seen by themselves"),
    Method("`$push_tasks()`", ("Rush.push_tasks",)),
    Method("`$push_priority_tasks()`", ("Rush.push_priority_tasks",), "a worker's id, or a number"),
    Method("`$push_running_tasks()`", ("RushWorker.push_running_tasks",)),
    Method("`$push_finished_tasks()`", ("Rush.push_finished_tasks",)),
    Method("`$push_failed_tasks()`", ("Rush.push_failed_tasks",)),
    Method("`$pop_task()`", ("RushWorker.pop_task",)),
    Method("`$finish_tasks()`, `$push_results()`", ("RushWorker.finish_tasks", "RushWorker.push_results")),
    Method("`$fail_tasks()`, `$push_failed()`", ("RushWorker.fail_tasks", "RushWorker.push_failed")),
    Method("`$retry_tasks()`", ("Rush.retry_tasks",)),
    Method("`with_rng_state()`, seeds", ("with_rng_state",), "`seeds=` of `push_tasks`"),
    Method("`worker_loop_default()`", ("worker_loop_default",)),
    Method("`worker_loop_callr()`", ("worker_loop_process",), "a forked process for each task"),
    Method("`$terminated`, `$terminated_on_idle`", ("RushWorker.terminated", "RushWorker.terminated_on_idle")),
    Method("`$fetch_tasks()`", ("Rush.fetch_tasks",)),
    Method("`$fetch_queued_tasks()`", ("Rush.fetch_queued_tasks",)),
    Method("`$fetch_running_tasks()`", ("Rush.fetch_running_tasks",)),
    Method("`$fetch_finished_tasks()`", ("Rush.fetch_finished_tasks",), "cached"),
    Method("`$fetch_failed_tasks()`", ("Rush.fetch_failed_tasks",)),
    Method("`$fetch_priority_tasks()`", ("Rush.fetch_priority_tasks",)),
    Method("`$fetch_tasks_with_state()`", ("Rush.fetch_tasks_with_state",)),
    Method("`$fetch_new_tasks()`", ("Rush.fetch_new_tasks", "Rush.iter_new_tasks"), "wakes on an event"),
    Method("`$wait_for_new_tasks()`", ("Rush.wait_for_new_tasks",)),
    Method("`$reset_cache()`", ("Rush.reset_cache",)),
    Method("`$wait_for_tasks()`", ("Rush.wait_for_tasks",), "returns whether all have ended"),
    Method("`$empty_queue()`", ("Rush.empty_queue",)),
    Method("`$reset()`, `$reset_data()`", ("Rush.reset", "Rush.reset_data"), "this network's keys alone"),
    Method("`$read_log()`, `$print_log()`", ("Rush.read_log", "Rush.print_log", "Rush.follow_log")),
    Method("`$worker_info`, `$worker_states`", ("Rush.worker_info", "Rush.worker_states")),
    Method("`$worker_ids`", ("Rush.worker_ids", "Rush.n_workers")),
    Method("`$running_worker_ids`", ("Rush.running_worker_ids", "Rush.n_running_workers")),
    Method("`$terminated_worker_ids`", ("Rush.terminated_worker_ids", "Rush.n_terminated_workers")),
    Method("`$killed_worker_ids`", ("Rush.killed_worker_ids", "Rush.n_killed_workers")),
    Method("`$lost_worker_ids`", ("Rush.lost_worker_ids", "Rush.n_lost_workers")),
    Method("`$tasks`, `$n_tasks`", ("Rush.tasks", "Rush.n_tasks")),
    Method("`$queued_tasks`, `$n_queued_tasks`", ("Rush.queued_tasks", "Rush.n_queued_tasks")),
    Method("`$running_tasks`, `$n_running_tasks`", ("Rush.running_tasks", "Rush.n_running_tasks")),
    Method("`$finished_tasks`, `$n_finished_tasks`", ("Rush.finished_tasks", "Rush.n_finished_tasks")),
    Method("`$failed_tasks`, `$n_failed_tasks`", ("Rush.failed_tasks", "Rush.n_failed_tasks")),
    Method("`$is_running_task()`, `$is_failed_task()`", ("Rush.is_running_task", "Rush.is_failed_task")),
    Method("`$priority_info`", ("Rush.priority_info",)),
    Method("`$snapshot_schedule`", ("Rush.snapshot_schedule", "Rush.snapshot", "Rush.restore"), "and a portable file"),
    Method("`$redis_info`", ("Rush.redis_info",)),
    Method("`$reconnect()`", (), "not needed: a `Rush` connects again by itself, also after it was pickled"),
    Method("`store_large_object()`, `large_objects_path`", ("Rush",), "in chunks on the server, or in a folder"),
)
