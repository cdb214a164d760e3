-- Purpose: a worker takes tasks to run them.
-- KEYS: 1 network, 2 queued_tasks, 3 running_tasks:<worker>, 4 worker_ids, 5 idle_workers,
--       6 worker_bell:<worker>; where the network keeps its tasks
--       7 worker_queue:<worker>
-- ARGV: 1 epoch, 2 worker id, 3-5 prefixes of task:, client:, blob:, 6 how many at most, 7 for how many seconds the worker
--   waits at its bell if it gets nothing, '' for not at all, then the ids of tasks that it holds and knows of
-- Returns: {how many are still queued, then for each task: id, attempt, payload, blob id, max_retries and,
--   where there is one, a blank and the time limit in seconds}
-- Row: queued claim -> running.
-- Loser: NETWORKGONE when the network is not the one that the worker was started for; WORKERGONE when the worker has
--   been taken for lost: it must not run anything any more.
-- Sent twice: what stands in the worker's running_tasks, and it does not know of, was given by a reply that it never saw,
-- and is given again, same attempt, before anything new.
local network = redis.call('HMGET', KEYS[1], 'epoch', 'durable')
if network[1] ~= ARGV[1] then
  return redis.error_reply('NETWORKGONE the network is not the one that this worker was started for')
end
if redis.call('SISMEMBER', KEYS[4], ARGV[2]) == 0 then
  return redis.error_reply('WORKERGONE this worker has been taken for lost')
end
local reply = {0}
local held = redis.call('SMEMBERS', KEYS[3])
if #held > 0 then
  local known, is_stale = {}, false
  for i = 8, #ARGV do
    known[ARGV[i]] = true
  end
  for _, id in ipairs(held) do
    local task = known[id] and {} or redis.call('HMGET', ARGV[3] .. id, 'attempt', 'payload', 'blob', 'max_retries', 'timeout', 'worker')
    if task[6] == ARGV[2] then
      local at = #reply
      reply[at + 1], reply[at + 2], reply[at + 3] = id, task[1], task[2]
      reply[at + 4], reply[at + 5] = task[3] or '', limits(task[4], task[5])
    elseif not known[id] then
      -- Pushed anew by a client whose server was put back to an older state: it is somebody else's now.
      redis.call('SREM', KEYS[3], id)
      is_stale = true
    end
  end
  if is_stale or #reply > 1 then
    -- It may lie there as well, handed to a worker that had just stopped to wait.
    redis.call('DEL', KEYS[6])
  end
  if #reply > 1 then
    reply[1] = redis.call('ZCARD', KEYS[2]) + (KEYS[7] and redis.call('ZCARD', KEYS[7]) or 0)
    redis.call('ZREM', KEYS[5], ARGV[2])
    return reply
  end
end
-- Before anything is added: a full server refuses a script only as long as it has changed nothing.
redis.call('ZREM', KEYS[5], ARGV[2])
reply = claim(ARGV[2], tonumber(ARGV[6]), #ARGV - 7, network[2], KEYS[3], KEYS[2], KEYS[4], KEYS[5], KEYS[6], KEYS[7], ARGV[3],
  ARGV[4], ARGV[5])
if #reply == 1 and reply[1] == 0 and ARGV[7] ~= '' then
  idle(KEYS[5], ARGV[2], ARGV[7])
end
return reply
