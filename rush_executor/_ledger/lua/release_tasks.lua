-- Purpose: a worker gives back tasks that it has claimed and not started.
-- KEYS: 1 running_tasks:<worker>, 2 queued_tasks, 3 bell, 4 worker_ids, 5 network
-- ARGV: 1 worker id, 2-4 prefixes of task:, client:, blob:, then for each task: id, attempt
-- Returns: how many went back
-- Row: running release -> queued, uncharged, at the place in the queue that the task had.
-- Loser: what the worker does not hold (any more) is passed over.
-- Sent twice: the first has taken the worker's name off the task, so the second passes it over.
-- A task whose client is gone does not go back, it is dropped.
local is_there = client_check(ARGV[3], redis.call('HGET', KEYS[5], 'durable'))
local ranked = {}
for at = 5, #ARGV, 2 do
  local id = ARGV[at]
  local key = ARGV[2] .. id
  local task = redis.call('HMGET', key, 'worker', 'attempt', 'rank', 'client', 'blob', 'state')
  if task[1] == ARGV[1] and task[2] == ARGV[at + 1] and task[6] == 'running' then
    -- First what makes room: a full server refuses a script only as long as it has changed nothing.
    redis.call('SREM', KEYS[1], id)
    if is_there(task[4]) then
      redis.call('HSET', key, 'state', 'queued')
      redis.call('HDEL', key, 'worker', 'started_at')
      ranked[#ranked + 1] = task[3]
      ranked[#ranked + 1] = id
    else
      drop(key, ARGV[4], task[5])
    end
  end
end
if #ranked > 0 then
  redis.call('ZADD', KEYS[2], unpack(ranked))
  ring(KEYS[3], KEYS[4], #ranked / 2)
end
return #ranked / 2
