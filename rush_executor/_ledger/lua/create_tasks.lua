-- Purpose: make tasks that the network keeps, in any state.
-- KEYS: 1 network, 2 all_tasks, 3 queued_tasks, 4 idle_workers, 5 worker_ids, 6 finished_tasks, 7 failed_tasks, 8 ends,
--       9 running_tasks:<worker>
-- ARGV: 1 epoch, 2 state, 3 worker id ('' for none), 4-8 prefixes of task:, blob:, worker_queue:, worker_bell:,
--       running_tasks:,
--       then for each task: id, payload, '' or what is unusual: how many fields and values of the record follow, priority,
--       blob ids (a comma behind each) and the worker for which it is queued, with blanks between; then those fields and
--       values
-- Returns: how many were made
-- Row: - push -> queued; - push_running, push_finished, push_failed -> running, finished, failed.
-- Loser: NETWORKGONE when the network is not the one that the caller knows; WORKERGONE when a worker that has been taken
--   for lost makes running tasks: nobody would ever end them.
-- Sent twice: the record of the first task is there already, and so are the others: a script runs as a whole.
-- A task for a worker that is not there (any more) is queued for all. One by itself, of which nothing is unusual, is handed to
-- a worker that waits.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return redis.error_reply('NETWORKGONE the network is not the one that was joined here')
end
local state, worker = ARGV[2], ARGV[3]
if state == 'running' and redis.call('SISMEMBER', KEYS[5], worker) == 0 then
  return redis.error_reply('WORKERGONE this worker has been taken for lost')
end
local last = #ARGV
-- What is unusual of the task that begins at a place: number of fields and values, priority, blobs, worker.
local function options(at)
  if ARGV[at + 2] == '' then
    return 0, 0, '', ''
  end
  return string.match(ARGV[at + 2], '^(%d+) (%-?%d+) (%S*) (.*)$')
end
local function keep_blobs(blobs)
  for blob in string.gmatch(blobs, '[^,]+') do
    redis.call('PERSIST', ARGV[5] .. blob)
  end
end
if ARGV[9] and redis.call('EXISTS', ARGV[4] .. ARGV[9]) == 1 then
  -- Blobs that were sent again have a TTL again.
  local at = 9
  while at <= last do
    local n, _, blobs = options(at)
    keep_blobs(blobs)
    at = at + 3 + n
  end
  return 0
end
local time = now()
local sequence = 0
if state == 'queued' then
  -- More than are needed, but none twice.
  sequence = redis.call('HINCRBY', KEYS[1], 'sequence', last) - last
end
local made, ranked, is_for = {}, {}, {}
local n_made, at = 0, 9
while at <= last do
  local id, payload = ARGV[at], ARGV[at + 1]
  local key = ARGV[4] .. id
  local n, priority, blobs, target = options(at)
  local from, to = at + 3, at + 2 + n
  n_made = n_made + 1
  made[n_made] = id
  if state == 'queued' then
    local rank = string.format('%.0f', sequence + n_made - priority * 1099511627776)
    redis.call('HSET', key, 'state', state, 'rank', rank, 'pushed_at', time, 'payload', payload, unpack(ARGV, from, to))
    if target ~= '' and redis.call('SISMEMBER', KEYS[5], target) == 1 then
      redis.call('ZADD', ARGV[6] .. target, rank, id)
      is_for[target] = true
    else
      ranked[#ranked + 1] = rank
      ranked[#ranked + 1] = id
    end
  else
    redis.call('HSET', key, 'state', state, 'rank', 0, 'attempt', 1, 'worker', worker, 'pushed_at', time,
      state == 'running' and 'started_at' or 'ended_at', time, 'payload', payload, unpack(ARGV, from, to))
  end
  if blobs ~= '' then
    keep_blobs(blobs)
  end
  at = to + 1
end
if #made == 0 then
  return 0
end
redis.call('RPUSH', KEYS[2], unpack(made))
if state == 'queued' then
  if last == 11 and ARGV[11] == '' and hand(ARGV[1], KEYS[4], ARGV[7], ARGV[8], ARGV[4] .. ARGV[9], ARGV[9], ARGV[10], '', limits()) then
    return 1
  end
  for target in pairs(is_for) do
    if redis.call('ZREM', KEYS[4], target) == 1 then
      redis.call('RPUSH', ARGV[7] .. target, '1')
    end
  end
  if #ranked > 0 then
    redis.call('ZADD', KEYS[3], unpack(ranked))
    ring(KEYS[4], ARGV[7], #ranked / 2)
  end
elseif state == 'running' then
  redis.call('SADD', KEYS[9], unpack(made))
else
  if state == 'finished' then
    redis.call('RPUSH', KEYS[6], unpack(made))
  else
    redis.call('SADD', KEYS[7], unpack(made))
  end
  tell_ends(KEYS[8])
end
return #made
