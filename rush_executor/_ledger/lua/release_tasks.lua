-- Purpose: a worker gives back tasks that it has claimed and not started.
-- KEYS: 1 running_tasks:<worker>, 2 queued_tasks, 3 bell, 4 worker_ids
-- ARGV: 1 worker id, 2 prefix of task:, then for each task: id, attempt
-- Returns: how many went back
-- Row: running release -> queued, uncharged, at the place in the queue that the task had.
-- Loser: what the worker does not hold (any more) is passed over.
-- Sent twice: the first has taken the worker's name off the task, so the second passes it over.
local released = {}
local ranked = {}
for at = 3, #ARGV, 2 do
  local id = ARGV[at]
  local key = ARGV[2] .. id
  local task = redis.call('HMGET', key, 'worker', 'attempt', 'rank')
  if task[1] == ARGV[1] and task[2] == ARGV[at + 1] then
    redis.call('HSET', key, 'state', 'queued')
    redis.call('HDEL', key, 'worker')
    released[#released + 1] = id
    ranked[#ranked + 1] = task[3]
    ranked[#ranked + 1] = id
  end
end
if #released > 0 then
  redis.call('SREM', KEYS[1], unpack(released))
  redis.call('ZADD', KEYS[2], unpack(ranked))
  ring(KEYS[3], KEYS[4], #released)
end
return #released
