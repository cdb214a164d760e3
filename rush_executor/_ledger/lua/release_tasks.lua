-- Purpose: a worker gives back tasks that it has claimed and not started.
-- KEYS: 1 running_tasks:<worker>, 2 queued_tasks, 3 idle_workers, 4 network
-- ARGV: 1 worker id, 2-5 prefixes of task:, client:, blob:, worker_bell:, then for each task: id, attempt
-- Returns: how many went back
-- Row: running release -> queued, uncharged, at the place in the queue that the task had.
-- Loser: what the worker does not hold (any more) is passed over.
-- Sent twice: the first has taken the worker's name off the task, so the second passes it over.
-- A task whose client is gone does not go back, it is dropped.
local durable = redis.call('HGET', KEYS[4], 'durable')
return put_back(ARGV[1], {unpack(ARGV, 6)}, durable, KEYS[1], KEYS[2], KEYS[3], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
