-- Purpose: a client joins a network, or creates it.
-- KEYS: 1 network, 2 client_ids, 3 client:<client>, 4 queued_tasks, 5 inbox:<client>, 6 idle_workers; for the client
--       that a worker's task is, 7 worker:<worker>
-- ARGV: 1 client id, 2 epoch to use if the network is new, 3 lease in ms, 4 initializer ('' for none),
--       5-9 key prefixes of client:, inbox:, functions:, task:, blob:, 10 creator if the network is new: the one whose
--       initializer it is, which another client may put back after the server has lost its data, 11 '1' for a durable
--       network if it is new, 12 for the client that a task is, the epoch of its worker, else '', 13 prefix of worker_bell:
-- Returns: {epoch, creator's client id, broken ('' if not), initializer, '1' if it is durable, else ''}
-- Row: none (no task changes state). Sent twice: the second finds the network of the first and answers the same.
-- Loser: WRONGKIND when the network is not an executor's. A task that wants to be a client: NETWORKGONE when the network is not
--   that of its worker (any more); WORKERGONE when the worker has been taken for lost: nobody would delete what it leaves.
-- A network whose clients are all gone is a leftover, unless it is durable: its queue is emptied and it gets a new epoch.
if redis.call('HGET', KEYS[1], 'kind') then
  return redis.error_reply('WRONGKIND the network keeps its tasks')
end
local is_durable = redis.call('HEXISTS', KEYS[1], 'durable') == 1
clear_stale(KEYS[2], ARGV[5], ARGV[6], ARGV[7], is_durable)
if KEYS[7] then
  local is_left = redis.call('SCARD', KEYS[2]) == 0 and not is_durable
  if is_left or redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[12] then
    return redis.error_reply('NETWORKGONE the network is not the one that this worker was started for')
  end
  if redis.call('EXISTS', KEYS[7]) == 0 then
    return redis.error_reply('WORKERGONE this worker has been taken for lost')
  end
  -- The task before this one may have left without saying so.
  local former = redis.call('HGET', KEYS[7], 'client')
  if former and former ~= ARGV[1] then
    forget_client(KEYS[2], former, ARGV[5] .. former, ARGV[6] .. former, ARGV[7] .. former, ARGV[9], is_durable)
  end
  redis.call('HSET', KEYS[7], 'client', ARGV[1])
end
if redis.call('SCARD', KEYS[2]) == 0 and not is_durable then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[4], 0, -1)) do
    local key = ARGV[8] .. id
    drop(key, ARGV[9], redis.call('HGET', key, 'blob'))
  end
  redis.call('DEL', KEYS[1], KEYS[4])
  -- Those of the leftover learn that it is not there any more.
  ring(KEYS[6], ARGV[13], redis.call('ZCARD', KEYS[6]))
  redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'creator', ARGV[10], 'initializer', ARGV[4])
  if ARGV[11] == '1' then
    redis.call('HSET', KEYS[1], 'durable', '1')
  end
end
if redis.call('SADD', KEYS[2], ARGV[1]) == 1 then
  redis.call('HSET', KEYS[3], 'lease', ARGV[3], 'pushed', '0')
  redis.call('PEXPIRE', KEYS[3], ARGV[3])
  -- Empty, but there, with a TTL: whoever delivers need not see to that.
  redis.call('XADD', KEYS[5], 'MAXLEN', 0, '*', '', '')
  redis.call('PEXPIRE', KEYS[5], ARGV[3])
end
local network = redis.call('HMGET', KEYS[1], 'epoch', 'creator', 'broken', 'initializer', 'durable')
return {network[1], network[2], network[3] or '', network[4], network[5] or ''}
