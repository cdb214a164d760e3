-- What several transitions share; put in front of every script by the loader.
--
-- deliver: append outcomes (id, outcome, id, outcome, ...) to a client's inbox and ring its bell.
--   The client's lease (a field of its record, milliseconds) bounds the life of what is written for it.
--   Returns false when the client is gone: nobody waits for these, they are dropped.
local function deliver(client_key, inbox, client_bell, outcomes)
  local lease = redis.call('HGET', client_key, 'lease')
  if not lease then
    return false
  end
  local length = 0
  for first = 1, #outcomes, 1000 do
    length = redis.call('RPUSH', inbox, unpack(outcomes, first, math.min(first + 999, #outcomes)))
  end
  if length == #outcomes then
    redis.call('PEXPIRE', inbox, lease)
  end
  if redis.call('LLEN', client_bell) == 0 then
    redis.call('RPUSH', client_bell, '1')
    redis.call('PEXPIRE', client_bell, lease)
  end
  return true
end

-- ring: see to it that a token lies in the bell for each of n tasks, but for no more tasks than there are workers.
local function ring(bell, worker_ids, n)
  local missing = math.min(n, redis.call('SCARD', worker_ids)) - redis.call('LLEN', bell)
  for _ = 1, missing do
    redis.call('RPUSH', bell, '1')
  end
end
