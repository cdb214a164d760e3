-- What several transitions share; put in front of every script by the loader.
--
-- deliver: append outcomes (id, outcome, id, outcome, ...) to a client's inbox and ring its bell.
--   The client's lease (a field of its record, milliseconds) bounds the life of what is written for it.
--   Returns the lease, or false when the client is gone: nobody waits for these, they are dropped.
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
  return lease
end

-- drop: delete the record of a task and the blob that goes with it, if there is one.
local function drop(key, blob_prefix, blob)
  redis.call('DEL', key)
  if blob then
    redis.call('UNLINK', blob_prefix .. blob)
  end
end

-- client_check: a function that says whether a client is there, and asks the server once for each. What a client that is
-- gone had queued goes nowhere any more: once the last client has left, nobody would ever take it away.
local function client_check(client_prefix)
  local known = {}
  return function(client)
    if known[client] == nil then
      known[client] = redis.call('EXISTS', client_prefix .. client) == 1
    end
    return known[client]
  end
end

-- clear_stale: take clients whose lease has run out off the list, and what was kept for them.
local function clear_stale(client_ids, client_prefix, inbox_prefix, bell_prefix, functions_prefix)
  for _, id in ipairs(redis.call('SMEMBERS', client_ids)) do
    if redis.call('EXISTS', client_prefix .. id) == 0 then
      redis.call('SREM', client_ids, id)
      redis.call('UNLINK', inbox_prefix .. id, bell_prefix .. id, functions_prefix .. id)
    end
  end
end

-- ring: see to it that a token lies in the bell for each of n tasks, but for no more tasks than there are workers.
local function ring(bell, worker_ids, n)
  local missing = math.min(n, redis.call('SCARD', worker_ids)) - redis.call('LLEN', bell)
  for _ = 1, missing do
    redis.call('RPUSH', bell, '1')
  end
end
