-- Purpose: put a batch of tasks into the queue; one by itself is handed to a worker that waits.
-- KEYS: 1 network, 2 client:<client>, 3 queued_tasks, 4 idle_workers; where the network is durable
--       5 all_tasks, 6 failed_tasks, 7 finished_tasks
-- ARGV: 1 epoch, 2 client id, 3-6 prefixes of task:, blob:, worker_bell:, running_tasks:, 7 number of the batch,
--       then for each task: id, payload, priority, max_retries ('' for the default, which is not written down), time limit in
--       seconds ('' for none), blob id ('' for none)
-- Returns: how many tasks were taken (0 when the batch had been taken before)
-- Row: - push -> queued, and at once queued claim -> running where a worker waits.
-- Loser: NETWORKGONE when the network or the client's record is not the one that the client knows.
-- Sent twice: batches of a client are numbered and come in order, so a number that has been seen is answered with 0,
-- even if its tasks have been run and delivered since. A client that starts again in the middle of a push writes the
-- blobs again, which gives them a TTL: they are put right as well, or deleted where the task has no use for them any
-- more. So they are where the client is gone and the network, being durable, keeps its tasks.
-- A rank is priority first, then order of submission: 2^40 submissions, 4095 priorities each way, all exact in a double.
local network = redis.call('HMGET', KEYS[1], 'epoch', 'durable')
if network[1] ~= ARGV[1] then
  return redis.error_reply('NETWORKGONE the network is not the one that this client opened')
end
local pushed = redis.call('HGET', KEYS[2], 'pushed')
if not pushed and not network[2] then
  return redis.error_reply('NETWORKGONE the record of this client is gone')
end
local n = (#ARGV - 7) / 6
if not pushed or tonumber(ARGV[7]) <= tonumber(pushed) then
  for at = 7, #ARGV - 1, 6 do
    local blob = ARGV[at + 6]
    if blob ~= '' then
      if redis.call('HGET', ARGV[3] .. ARGV[at + 1], 'blob') == blob then
        redis.call('PERSIST', ARGV[4] .. blob)
      else
        redis.call('UNLINK', ARGV[4] .. blob)
      end
    end
  end
  return pushed and 0 or redis.error_reply('NETWORKGONE the record of this client is gone')
end
local sequence = redis.call('HINCRBY', KEYS[1], 'sequence', n) - n
local ranked, made = {}, {}
local time = network[2] and now()
for i = 1, n do
  local at = 6 * i + 1
  local id, timeout, blob = ARGV[at + 1], ARGV[at + 5], ARGV[at + 6]
  local rank = string.format('%.0f', sequence + i - tonumber(ARGV[at + 3]) * 1099511627776)
  if time then
    -- One that is retried is there already, and has ended: as its client sees it by a failure, for the ledger perhaps
    -- finished, as is a chunk of calls one of which has raised.
    local outcome = redis.call('HGET', ARGV[3] .. id, 'outcome')
    if outcome then
      local tag = string.sub(outcome, 1, 1)
      if tag == 'e' or tag == 'f' then
        -- Not deleted at once: who has asked for the task as well (attach_tasks.lua) may be about to read it.
        redis.call('PEXPIRE', ARGV[4] .. string.sub(outcome, 2), 60000)
      end
      if tag == 'F' or tag == 'f' then
        -- Who reads that list by index begins anew.
        redis.call('LREM', KEYS[7], -1, id)
        redis.call('HSET', KEYS[1], 'cleared', ARGV[2] .. '/' .. ARGV[7])
      else
        redis.call('SREM', KEYS[6], id)
      end
      redis.call('HDEL', ARGV[3] .. id, 'outcome', 'worker', 'started_at', 'ended_at', 'losses',
        'max_retries', 'timeout')
    else
      made[#made + 1] = id
    end
    redis.call('HSET', ARGV[3] .. id, 'pushed_at', time)
  end
  redis.call('HSET', ARGV[3] .. id, 'state', 'queued', 'client', ARGV[2], 'payload', ARGV[at + 2], 'rank', rank)
  if blob ~= '' then
    redis.call('HSET', ARGV[3] .. id, 'blob', blob)
    redis.call('PERSIST', ARGV[4] .. blob)
  end
  if ARGV[at + 4] ~= '' then
    redis.call('HSET', ARGV[3] .. id, 'max_retries', ARGV[at + 4])
  end
  if timeout ~= '' then
    redis.call('HSET', ARGV[3] .. id, 'timeout', timeout)
  end
  ranked[2 * i - 1] = rank
  ranked[2 * i] = id
end
if #made > 0 then
  redis.call('RPUSH', KEYS[5], unpack(made))
end
redis.call('HSET', KEYS[2], 'pushed', ARGV[7])
if n > 1 then
  redis.call('ZADD', KEYS[3], unpack(ranked))
  ring(KEYS[4], ARGV[5], n)
else
  local id = ARGV[8]
  if not hand(ARGV[1], KEYS[4], ARGV[5], ARGV[6], ARGV[3] .. id, id, ARGV[9], ARGV[13], limits(ARGV[11], ARGV[12])) then
    redis.call('ZADD', KEYS[3], unpack(ranked))
  end
end
return n
