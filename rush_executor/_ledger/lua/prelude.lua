-- What several transitions share. The loader puts in front of a script those of these functions that it calls; none of them
-- calls another.

-- deliver: append outcomes (id, outcome, id, outcome, ...) to a client's inbox, which wakes the client.
--   They are fields of one entry, but for as much as a client should have to read at once.
--   Returns the client's lease (a field of its record, milliseconds: it bounds the life of what is written for it), or
--   false when the client is gone: nobody waits for these, they are dropped.
local function deliver(client_key, inbox, outcomes)
  local lease = redis.call('HGET', client_key, 'lease')
  if not lease then
    return false
  end
  local first, bytes = 1, 0
  for last = 2, #outcomes, 2 do
    bytes = bytes + #outcomes[last]
    if last == #outcomes or last - first > 1000 or bytes > 1048576 then
      redis.call('XADD', inbox, '*', unpack(outcomes, first, last))
      first, bytes = last + 1, 0
    end
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

-- forget_call: a call that a durable network keeps has ended: its arguments are not kept.
local function forget_call(key, blob_prefix, blob)
  redis.call('HDEL', key, 'payload', 'blob')
  if blob then
    redis.call('UNLINK', blob_prefix .. blob)
  end
end

-- client_check: a function that says whether a client is there, and asks the server once for each. What a client that is
-- gone had queued goes nowhere any more: once the last client has left, nobody would ever take it away. Unless the network
-- is durable, and keeps it; a task without a client is the network's own in any case.
local function client_check(client_prefix, durable)
  local known = {}
  return function(client)
    if durable or not client then
      return true
    end
    if known[client] == nil then
      known[client] = redis.call('EXISTS', client_prefix .. client) == 1
    end
    return known[client]
  end
end

-- forget_client: delete what is kept for a client: record, inbox, functions (those stay in a durable network, whose tasks may
-- need them), and large outcomes that were not read any more; some at a time, as each may be some 100 kB that are copied
-- here.
local function forget_client(client_ids, client, client_key, inbox, functions, blob_prefix, durable)
  local from = '-'
  repeat
    local entries = redis.call('XRANGE', inbox, from, '+', 'COUNT', 50)
    for _, entry in ipairs(entries) do
      for at = 2, #entry[2], 2 do
        local tag = string.sub(entry[2][at], 1, 1)
        if (tag == 'f' or tag == 'e') and not durable then
          redis.call('UNLINK', blob_prefix .. string.sub(entry[2][at], 2))
        end
      end
      from = '(' .. entry[1]
    end
  until #entries == 0
  redis.call('SREM', client_ids, client)
  redis.call('UNLINK', client_key, inbox)
  if not durable then
    redis.call('UNLINK', functions)
  end
end

-- want_end: tell the agent of a worker that a task which that worker runs is to end. Returns whether there is an agent.
local function want_end(worker_key, kills_prefix, id, ms)
  local agent = redis.call('HGET', worker_key, 'agent')
  if not agent then
    return false
  end
  local kills = kills_prefix .. agent
  redis.call('SADD', kills, id)
  redis.call('PEXPIRE', kills, ms)
  redis.call('PUBLISH', kills, id)
  return true
end

-- clear_stale: take clients whose lease has run out off the list, and what was kept for them. In a durable network their
-- functions stay: tasks of theirs may still be run.
local function clear_stale(client_ids, client_prefix, inbox_prefix, functions_prefix, durable)
  for _, id in ipairs(redis.call('SMEMBERS', client_ids)) do
    if redis.call('EXISTS', client_prefix .. id) == 0 then
      redis.call('SREM', client_ids, id)
      redis.call('UNLINK', inbox_prefix .. id, durable and inbox_prefix .. id or functions_prefix .. id)
    end
  end
end

-- ring: see to it that a token lies in the bell for each of n tasks, but (of more than one) for no more tasks than there
-- are workers.
local function ring(bell, worker_ids, n)
  local missing = (n > 1 and math.min(n, redis.call('SCARD', worker_ids)) or n) - redis.call('LLEN', bell)
  for _ = 1, missing do
    redis.call('RPUSH', bell, '1')
  end
end

-- now: the server's clock, in seconds.
local function now()
  local time = redis.call('TIME')
  return string.format('%s.%06d', time[1], time[2])
end

-- made_at: which creation of a network, and which clearing of it, what was read now is of: who remembers what it has read
-- forgets that when this is another one.
local function made_at(network)
  local name = redis.call('HMGET', network, 'epoch', 'cleared')
  return (name[1] or '') .. ' ' .. (name[2] or '')
end

-- tell_ends: tasks that the network keeps have ended; wake all who wait for that.
local function tell_ends(ends)
  redis.call('XADD', ends, 'MAXLEN', 1, '*', '', '')
end

-- kept_failure: a task that the network keeps has failed.
local function kept_failure(key, id, failed_tasks, outcome, time)
  redis.call('HSET', key, 'state', 'failed', 'outcome', outcome, 'ended_at', time)
  redis.call('SADD', failed_tasks, id)
end

-- count_failed: tasks have failed of which nothing is left. The network may be gone, and is not to come back by this.
local function count_failed(network, n)
  if n > 0 and redis.call('EXISTS', network) == 1 then
    redis.call('HINCRBY', network, 'failed', n)
  end
end
