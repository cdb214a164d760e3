-- Purpose: failed tasks that the network keeps are queued again.
-- KEYS: 1 queued_tasks, 2 idle_workers, 3 failed_tasks
-- ARGV: 1 name of this retry, 2 '1' to disregard max_retries, 3-5 prefixes of task:, blob:, worker_bell:, then for each task: id, new
--       payload and new blob id (both '' for the old ones)
-- Returns: the ids that were queued
-- Row: failed retry -> queued, at the front of its priority.
-- Loser: a task that has not failed (any more), or has no retry left, is passed over.
-- Sent twice: a task that bears the name of this retry counts as queued.
local ranked, queued = {}, {}
for at = 6, #ARGV, 3 do
  local id = ARGV[at]
  local key = ARGV[3] .. id
  local task = redis.call('HMGET', key, 'state', 'losses', 'max_retries', 'rank', 'retry', 'outcome', 'blob')
  if task[5] == ARGV[1] then
    queued[#queued + 1] = id
  elseif task[1] == 'failed' then
    -- The failure itself was an attempt, unless it was the end of a worker, which has been counted.
    local losses = tonumber(task[2] or '0')
    if not string.find('LTK', string.sub(task[6], 1, 1), 1, true) then
      losses = losses + 1
    end
    if ARGV[2] == '1' or losses <= tonumber(task[3] or '0') then
      if string.sub(task[6], 1, 1) == 'e' then
        redis.call('UNLINK', ARGV[4] .. string.sub(task[6], 2))
      end
      redis.call('HSET', key, 'state', 'queued', 'losses', losses, 'retry', ARGV[1])
      redis.call('HDEL', key, 'outcome', 'more', 'worker', 'started_at', 'ended_at')
      local payload, blob = ARGV[at + 1], ARGV[at + 2]
      if payload ~= '' or blob ~= '' then
        if task[7] then
          redis.call('UNLINK', ARGV[4] .. task[7])
        end
        redis.call('HDEL', key, 'blob')
        redis.call('HSET', key, 'payload', payload)
        if blob ~= '' then
          redis.call('HSET', key, 'blob', blob)
          redis.call('PERSIST', ARGV[4] .. blob)
        end
      end
      redis.call('SREM', KEYS[3], id)
      ranked[#ranked + 1] = task[4]
      ranked[#ranked + 1] = id
      queued[#queued + 1] = id
    end
  end
end
if #ranked > 0 then
  redis.call('ZADD', KEYS[1], unpack(ranked))
  ring(KEYS[2], ARGV[5], #ranked / 2)
end
return queued
