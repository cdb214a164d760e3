-- What several transitions share. The loader puts in front of a script those of these functions that it calls, and those that
-- they call, which stand above them.

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

-- now: the server's clock, in seconds.
local function now()
  local time = redis.call('TIME')
  return string.format('%s.%06d', time[1], time[2])
end

-- idle: a worker waits at its bell, for so many seconds at most: who has not come back by then is not counted on.
local function idle(idle_workers, worker, seconds)
  redis.call('ZADD', idle_workers, string.format('%.6f', now() + seconds), worker)
end

-- ring: tasks were queued: wake as many workers, of those that wait. The one that began last is the first: a caller that waits
-- for each task keeps to one worker, whose caches are warm.
local function ring(idle_workers, bell_prefix, n)
  local woken = redis.call('ZPOPMAX', idle_workers, n)
  local time = #woken > 0 and tonumber(now())
  for i = 1, #woken, 2 do
    if tonumber(woken[i + 1]) > time then
      redis.call('RPUSH', bell_prefix .. woken[i], '1')
    end
  end
end

-- limits: what a worker is told of a task beside the call. One without max_retries is usual: a client's may be run again, and
-- of one that the network keeps its worker's loss while it runs is the end, but it may be run again when its worker was lost
-- after it, before the outcome was told. That is no 0, which says: at most once.
local function limits(max_retries, timeout)
  local most = max_retries and max_retries ~= '' and max_retries or '-1'
  return timeout and timeout ~= '' and most .. ' ' .. timeout or most
end

-- claim: a worker takes tasks to run them: of its own queue, which is nobody else's, or its fair share of the queue of all.
--   A task whose client is gone is dropped, not run. Had it been woken for the queue of all, and took of its own, another one
--   is woken.
--   Returns {how many are still queued, then for each task: id, attempt, payload, blob id, max_retries and, where there is
--   one, a blank and the time limit in seconds}.
local function claim(worker, limit, n_known, durable, running_tasks, queued_tasks, worker_ids, idle_workers, bell, worker_queue,
    task_prefix, client_prefix, blob_prefix)
  local popped = worker_queue and redis.call('ZPOPMIN', worker_queue, limit) or {}
  local queued
  if #popped > 0 then
    local for_all = redis.call('ZCARD', queued_tasks)
    queued = #popped / 2 + redis.call('ZCARD', worker_queue) + for_all
    if for_all > 0 then
      ring(idle_workers, string.sub(bell, 1, -#worker - 1), 1)
    end
  else
    queued = redis.call('ZCARD', queued_tasks)
    if queued == 0 then
      return {0}
    end
    local share = limit > 1 and math.ceil(queued / redis.call('SCARD', worker_ids)) or 1
    popped = redis.call('ZPOPMIN', queued_tasks, math.min(limit, share))
  end
  local time = now()
  local batch = #popped / 2
  local is_there = client_check(client_prefix, durable)
  local reply, claimed = {queued - batch}, {}
  for i = 1, #popped, 2 do
    local id = popped[i]
    local key = task_prefix .. id
    local task = redis.call('HMGET', key, 'client', 'payload', 'attempt', 'blob', 'max_retries', 'timeout')
    if task[2] then
      if is_there(task[1]) then
        local attempt = tonumber(task[3] or '0') + 1
        -- How many the worker holds then: one that is held alone is as good as started (`cancel_tasks.lua`).
        redis.call('HSET', key, 'state', 'running', 'worker', worker, 'attempt', attempt, 'batch', batch + n_known,
          'started_at', time)
        local at = #reply
        reply[at + 1], reply[at + 2], reply[at + 3] = id, attempt, task[2]
        reply[at + 4], reply[at + 5] = task[4] or '', limits(task[5], task[6])
        claimed[#claimed + 1] = id
      else
        drop(key, blob_prefix, task[4])
      end
    end
  end
  if #claimed > 0 then
    redis.call('SADD', running_tasks, unpack(claimed))
  end
  return reply
end

-- token: what lies in a bell, of what a claim has given: how the epoch begins, and how many are still queued; then for each task
-- id, attempt, blob id, limits and the length of the payload; tabs between and a line feed behind; and the payload.
local function token(epoch, claimed)
  local parts = {string.sub(epoch, 1, 8) .. '\t' .. claimed[1] .. '\n'}
  for at = 2, #claimed, 5 do
    local payload = claimed[at + 2]
    parts[#parts + 1] = table.concat(
      {claimed[at], claimed[at + 1], claimed[at + 3], claimed[at + 4], #payload .. '\n' .. payload}, '\t')
  end
  return table.concat(parts)
end

-- unseen: what lies in bells has not been seen by the worker: the ids of the tasks in these tokens. They are taken apart, not
-- searched: a payload may hold whatever looks like an id.
local function unseen(tokens)
  local ids = {}
  for _, token in ipairs(tokens) do
    local at = string.find(token, '\n', 1, true)
    while at and at < #token do
      local _, last, id, length = string.find(token, '^([^\t]*)\t[^\t]*\t[^\t]*\t[^\t]*\t(%d+)\n', at + 1)
      if id then
        ids[id] = true
      end
      at = last and last + length
    end
  end
  return ids
end

-- hand: a task that was made just now goes straight to a worker that waits, if there is one: it is running, and lies in that
-- worker's bell. Should it not be seen there, the worker's next claim gives it, as it gives all that it holds.
--   Returns whether there was one; if not, the task has to be queued.
local function hand(epoch, idle_workers, bell_prefix, running_prefix, key, id, payload, blob, limits)
  local woken = redis.call('ZPOPMAX', idle_workers)
  local worker = woken[1]
  local time = worker and now()
  if not worker or tonumber(woken[2]) <= tonumber(time) then
    return false
  end
  local attempt = redis.call('HINCRBY', key, 'attempt', 1)
  redis.call('HSET', key, 'state', 'running', 'worker', worker, 'batch', 1, 'started_at', time)
  redis.call('SADD', running_prefix .. worker, id)
  redis.call('RPUSH', bell_prefix .. worker, token(epoch, {0, id, attempt, payload, blob, limits}))
  return true
end

-- rest: a worker that has handed in all that it had is about to wait at its bell. If there is something for it, it claims,
-- and finds that in the bell at once. Not a worker that has been taken for lost, or is of a network that was here before:
-- it learns that at its next claim.
local function rest(worker, epoch, limit, seconds, network, worker_ids, idle_workers, bell, running_tasks, queued_tasks, worker_queue,
    task_prefix, client_prefix, blob_prefix)
  local found = redis.call('HMGET', network, 'epoch', 'durable')
  if found[1] ~= epoch or redis.call('SISMEMBER', worker_ids, worker) == 0 then
    return
  end
  local there = redis.call('EXISTS', queued_tasks, running_tasks, worker_queue or queued_tasks)
  if there == 0 then
    idle(idle_workers, worker, seconds)
  elseif redis.call('EXISTS', running_tasks) == 1 then
    -- It holds what it does not know of, as a reply was lost.
    redis.call('RPUSH', bell, '1')
  else
    redis.call('ZREM', idle_workers, worker)
    local claimed = claim(worker, tonumber(limit), 0, found[2], running_tasks, queued_tasks, worker_ids, idle_workers, bell,
      worker_queue, task_prefix, client_prefix, blob_prefix)
    if #claimed == 1 and claimed[1] == 0 then
      -- It was all of clients that are gone.
      idle(idle_workers, worker, seconds)
    else
      redis.call('RPUSH', bell, token(epoch, claimed))
    end
  end
end

-- put_back: what a worker has not begun (id, attempt or false for any, ...) goes back, to the place in the queue that it had; what
-- nobody wants any more is dropped. Returns how many went back.
local function put_back(worker, held, durable, running_tasks, queued_tasks, idle_workers, task_prefix, client_prefix, blob_prefix,
    bell_prefix)
  local is_there = client_check(client_prefix, durable)
  local ranked = {}
  for at = 1, #held, 2 do
    local id = held[at]
    local key = task_prefix .. id
    local task = redis.call('HMGET', key, 'worker', 'attempt', 'rank', 'client', 'blob', 'state')
    if task[1] == worker and task[6] == 'running' and (not held[at + 1] or task[2] == held[at + 1]) then
      -- First what makes room: a full server refuses a script only as long as it has changed nothing.
      redis.call('SREM', running_tasks, id)
      if is_there(task[4]) then
        redis.call('HSET', key, 'state', 'queued')
        redis.call('HDEL', key, 'worker', 'started_at')
        ranked[#ranked + 1] = task[3]
        ranked[#ranked + 1] = id
      else
        drop(key, blob_prefix, task[5])
      end
    end
  end
  if #ranked > 0 then
    redis.call('ZADD', queued_tasks, unpack(ranked))
    ring(idle_workers, bell_prefix, #ranked / 2)
  end
  return #ranked / 2
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
