-- Purpose: make tasks from the records of a snapshot.
-- KEYS: 1 network, 2 all_tasks, 3 queued_tasks, 4 failed_tasks
-- ARGV: 1 name of this restore, 2 number of the batch, 3-4 prefixes of task:, blob:, then for each task: id, state (queued,
--       finished or failed), rank, blob ids ('' or ids, with blanks), number of fields and values that follow, fields and
--       values of the record
-- Returns: how many were made: 0 when the batch had been taken before
-- Row: - restore -> queued; - restore_finished, restore_failed -> finished, failed.
-- Loser: NETWORKGONE when the network was reset, or is restored by somebody else, since.
-- Sent twice: batches are numbered and come in order, so one that has been taken changes nothing; one that comes before its
--   turn, as the server refused the one before it, is refused too, and sent again.
-- Where a finished task stands in finished_tasks, `order_finished.lua` says.
local network = redis.call('HMGET', KEYS[1], 'restoring', 'restored')
if network[1] ~= ARGV[1] then
  return redis.error_reply('NETWORKGONE the network is not being restored here any more')
end
local number, done = tonumber(ARGV[2]), tonumber(network[2] or '0')
if number <= done then
  return 0
elseif number > done + 1 then
  return redis.error_reply('OUTOFORDER a batch before this one is missing')
end
local made, ranked, failed = {}, {}, {}
local at = 5
while at <= #ARGV do
  local id, state, n = ARGV[at], ARGV[at + 1], tonumber(ARGV[at + 4])
  redis.call('HSET', ARGV[3] .. id, 'state', state, unpack(ARGV, at + 5, at + 4 + n))
  for blob in string.gmatch(ARGV[at + 3], '%S+') do
    redis.call('PERSIST', ARGV[4] .. blob)
  end
  made[#made + 1] = id
  if state == 'queued' then
    ranked[#ranked + 1] = ARGV[at + 2]
    ranked[#ranked + 1] = id
  elseif state == 'failed' then
    failed[#failed + 1] = id
  end
  at = at + 5 + n
end
if #made > 0 then
  redis.call('RPUSH', KEYS[2], unpack(made))
end
if #ranked > 0 then
  redis.call('ZADD', KEYS[3], unpack(ranked))
end
if #failed > 0 then
  redis.call('SADD', KEYS[4], unpack(failed))
end
redis.call('HSET', KEYS[1], 'restored', number)
return #made
