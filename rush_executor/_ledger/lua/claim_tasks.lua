-- Purpose: a worker takes tasks to run them.
-- KEYS: 1 network, 2 queued_tasks, 3 running_tasks:<worker>, 4 worker_ids; where the network keeps its tasks
--       5 worker_queue:<worker>
-- ARGV: 1 epoch, 2 worker id, 3 how many at most, 4 prefix of task:, 5 prefix of client:, 6 prefix of blob:, then the ids
--   of tasks that the worker holds and knows of
-- Returns: {how many are still queued, then for each task: id, attempt, payload, blob id, max_retries and,
--   where there is one, a blank and the time limit in seconds}
-- Row: queued claim -> running.
-- Loser: NETWORKGONE when the network is not the one that the worker was started for; WORKERGONE when the worker has
--   been taken for lost: it must not run anything any more.
-- Sent twice: what stands in the worker's running_tasks, and it does not know of, was given by a reply that it never saw,
-- and is given again, same attempt, before anything new.
-- A worker gets no more than its fair share of the queue. A task whose client is gone is dropped, not run.
local network = redis.call('HMGET', KEYS[1], 'epoch', 'durable')
if network[1] ~= ARGV[1] then
  return redis.error_reply('NETWORKGONE the network is not the one that this worker was started for')
end
if redis.call('SISMEMBER', KEYS[4], ARGV[2]) == 0 then
  return redis.error_reply('WORKERGONE this worker has been taken for lost')
end
-- A task that the network keeps may be without max_retries: its worker's loss while it runs is its end, but it may be run
-- again when its worker was lost after it, before the outcome was told. That is no 0, which says: at most once.
local function limits(max_retries, timeout)
  local most = max_retries or '-1'
  return timeout and most .. ' ' .. timeout or most
end
local reply = {0}
local held = redis.call('SMEMBERS', KEYS[3])
if #held > 0 then
  local known = {}
  for i = 7, #ARGV do
    known[ARGV[i]] = true
  end
  for _, id in ipairs(held) do
    local task = known[id] and {} or redis.call('HMGET', ARGV[4] .. id, 'attempt', 'payload', 'blob', 'max_retries', 'timeout', 'worker')
    if task[6] == ARGV[2] then
      local at = #reply
      reply[at + 1], reply[at + 2], reply[at + 3] = id, task[1], task[2]
      reply[at + 4], reply[at + 5] = task[3] or '', limits(task[4], task[5])
    elseif not known[id] then
      -- Pushed anew by a client whose server was put back to an older state: it is somebody else's now.
      redis.call('SREM', KEYS[3], id)
    end
  end
  if #reply > 1 then
    reply[1] = redis.call('ZCARD', KEYS[2]) + (KEYS[5] and redis.call('ZCARD', KEYS[5]) or 0)
    return reply
  end
end
local limit = tonumber(ARGV[3])
-- The worker's own queue comes first, and is nobody else's: of that, no share is left for others.
local popped = KEYS[5] and redis.call('ZPOPMIN', KEYS[5], limit) or {}
local queued
if #popped > 0 then
  queued = #popped / 2 + redis.call('ZCARD', KEYS[5]) + redis.call('ZCARD', KEYS[2])
else
  queued = redis.call('ZCARD', KEYS[2])
  if queued == 0 then
    return reply
  end
  if limit > 1 then
    limit = math.min(limit, math.ceil(queued / redis.call('SCARD', KEYS[4])))
  end
  popped = redis.call('ZPOPMIN', KEYS[2], limit)
end
local time = now()
local batch = #popped / 2
-- How many the worker holds then: one that is held alone is as good as started (`cancel_tasks.lua`).
local n_held = batch + #ARGV - 6
local claimed = {}
local is_there = client_check(ARGV[5], network[2])
for i = 1, #popped, 2 do
  local id = popped[i]
  local key = ARGV[4] .. id
  local task = redis.call('HMGET', key, 'client', 'payload', 'attempt', 'blob', 'max_retries', 'timeout')
  if task[2] then
    if is_there(task[1]) then
      local attempt = tonumber(task[3] or '0') + 1
      redis.call('HSET', key, 'state', 'running', 'worker', ARGV[2], 'attempt', attempt, 'batch', n_held,
        'started_at', time)
      local at = #reply
      reply[at + 1], reply[at + 2], reply[at + 3] = id, attempt, task[2]
      reply[at + 4], reply[at + 5] = task[4] or '', limits(task[5], task[6])
      claimed[#claimed + 1] = id
    else
      drop(key, ARGV[6], task[4])
    end
  end
end
if #claimed > 0 then
  redis.call('SADD', KEYS[3], unpack(claimed))
end
reply[1] = queued - batch
return reply
