-- Purpose: a worker has ended, well or badly: put right what it held.
-- KEYS: 1 running_tasks:<worker>, 2 worker:<worker>, 3 worker_ids, 4 agent_workers:<agent>, 5 queued_tasks, 6 idle_workers,
--       7 heartbeat:<agent>, 8 network, 9 failed_tasks, 10 ends, 11 worker_queue:<worker>, 12 worker_bell:<worker>,
--       13 terminated_, killed_ or lost_worker_ids, 14 client_ids, 15 kills:<agent>
-- ARGV: 1 worker id, 2 whom to charge: a task id, '*' for all that it held and may have begun, '' for none,
--       3 '1' to do it only while the agent has no heartbeat (a reaper asks), else '0' (the agent itself asks),
--       4 how it ended (JSON), 5-8 prefixes of task:, client:, inbox:, blob:,
--       9 how the guilty task ends: 'L' when it has no attempt left, 'T' or 'K' at once: its worker was killed for it,
--       10 terminated, killed or lost, or starting: it is started again at once, 11 the same in words,
--       12-16 prefixes of functions:, running_tasks:, worker:, kills:, worker_bell:, 17 how long a wish to end a task is kept, in ms,
--       18 max_retries of a client's task that has none in its record (one of the network's own has none then)
-- Returns: {tasks queued again, tasks failed, 1 when the network has no client and waits to be deleted, else 0};
--   {-1, -1, 0} when the agent turned out to be alive
-- Row: running, worker lost -> queued (charged or not) | failed; running, time limit or kill -> failed. One that somebody
-- wants to be ended is not queued again, whatever its worker was lost by: who asked was told that it is.
-- Loser: the worker: its later outcomes and claims are refused.
-- Sent twice: the first has emptied running_tasks and taken the worker off the lists; the second finds nothing.
-- A task whose client is gone does not go back, it is dropped. If the worker's task has submitted tasks, the client that it
-- was for that goes with the worker: what it had queued is dropped when it is met, and who runs some of it is asked to end it.
-- A network that keeps its tasks keeps the worker's record, and what was queued for this worker alone is queued for all.
if ARGV[3] == '1' and redis.call('EXISTS', KEYS[7]) == 1 then
  return {-1, -1, 0}
end
local network = redis.call('HMGET', KEYS[8], 'kind', 'durable', 'epoch')
local keeps, durable = network[1] == 'tasks', network[2]
local is_there = client_check(ARGV[6], durable)
local ranked = {}
local failed = 0
local held = redis.call('SMEMBERS', KEYS[1])
-- A set has no order of its own; what several tasks end as comes in the same one on every server and replica.
table.sort(held)
local own_client = redis.call('HGET', KEYS[2], 'client')
local not_begun = ARGV[2] == '*' and unseen(redis.call('LRANGE', KEYS[12], 0, -1)) or {}
-- First what makes room: a full server refuses a script only as long as it has changed nothing.
redis.call('DEL', KEYS[1], KEYS[12])
if own_client then
  forget_client(KEYS[14], own_client, ARGV[6] .. own_client, ARGV[7] .. own_client, ARGV[12] .. own_client, ARGV[8], durable)
end
redis.call('ZREM', KEYS[6], ARGV[1])
local was_there = redis.call('SREM', KEYS[4], ARGV[1]) + redis.call('SREM', KEYS[3], ARGV[1]) > 0
local time
if not keeps or ARGV[10] == 'starting' then
  redis.call('DEL', KEYS[2])
elseif was_there then
  time = now()
  redis.call('HSET', KEYS[2], 'state', ARGV[10], 'ended_at', time, 'reason', ARGV[11])
  redis.call('SADD', KEYS[13], ARGV[1])
end
for _, id in ipairs(held) do
  local key = ARGV[5] .. id
  local task = redis.call('HMGET', key, 'worker', 'rank', 'losses', 'max_retries', 'client', 'blob')
  if task[1] == ARGV[1] then
    local losses = tonumber(task[3] or '0')
    local is_guilty = ARGV[2] == id or ARGV[2] == '*' and not not_begun[id]
    if is_guilty then
      losses = losses + 1
    end
    local is_wanted = redis.call('SREM', KEYS[15], id) == 1
    local client = task[5]
    if not is_there(client) then
      drop(key, ARGV[8], task[6])
    elseif is_wanted or is_guilty and (ARGV[9] ~= 'L' or losses > tonumber(task[4] or client and ARGV[18] or '0')) then
      local outcome = (is_guilty and ARGV[9] ~= 'L' and ARGV[9] or is_wanted and 'K' or 'L') .. losses .. ' ' .. ARGV[4]
      if client and not durable then
        drop(key, ARGV[8], task[6])
      else
        redis.call('HSET', key, 'losses', losses)
        kept_failure(key, id, KEYS[9], outcome, time or now())
        if client then
          forget_call(key, ARGV[8], task[6])
        end
      end
      if client then
        deliver(ARGV[6] .. client, ARGV[7] .. client, {id, outcome})
      end
      failed = failed + 1
    else
      redis.call('HSET', key, 'state', 'queued', 'losses', losses)
      redis.call('HDEL', key, 'worker', 'started_at')
      ranked[#ranked + 1] = task[2]
      ranked[#ranked + 1] = id
    end
  end
end
if keeps then
  local own = redis.call('ZRANGE', KEYS[11], 0, -1, 'WITHSCORES')
  for i = 1, #own, 2 do
    redis.call('ZADD', KEYS[5], own[i + 1], own[i])
  end
  redis.call('DEL', KEYS[11])
end
if failed > 0 and (keeps or durable) then
  tell_ends(KEYS[10])
else
  count_failed(KEYS[8], failed)
end
if #ranked > 0 then
  redis.call('ZADD', KEYS[5], unpack(ranked))
end
-- Also where this worker held nothing: it may have been woken for what is queued. Not when this is sent again.
local n_queued = (was_there or #ranked > 0) and redis.call('ZCARD', KEYS[5]) or 0
if n_queued > 0 then
  ring(KEYS[6], ARGV[16], n_queued)
end
if own_client then
  for _, worker in ipairs(redis.call('SMEMBERS', KEYS[3])) do
    for _, id in ipairs(redis.call('SMEMBERS', ARGV[13] .. worker)) do
      if string.sub(id, 1, #own_client + 1) == own_client .. '-' then
        want_end(ARGV[14] .. worker, ARGV[15], id, ARGV[17])
      end
    end
  end
end
local is_nobodys = network[3] and not keeps and not durable and redis.call('SCARD', KEYS[14]) == 0
return {#ranked / 2, failed, is_nobodys and 1 or 0}
