-- Purpose: before tasks that have failed are pushed again, under the same ids: their attempts are numbered on, not anew.
-- KEYS: 1 client:<client>
-- ARGV: 1 number of the batch, 2 prefix of task:, then for each task: id, number to go on from
-- Returns: 1, or 0 when the batch had been taken before
-- Row: none: what stands here is no task until push_tasks.lua, in the same packet, makes it one.
-- Loser: the worker that handed in the failure, without an answer, and is given the task once more: were the attempt the
--   same, it would take its outcome for lost on the way, and hand it in again for a run that there never was.
-- Sent twice: as in push_tasks.lua, a number that has been seen changes nothing. Until the push there is a TTL, in case it
-- never comes; the client takes it away behind the push. Not where a durable network keeps the failure: that stays.
local client = redis.call('HMGET', KEYS[1], 'pushed', 'lease')
if not client[1] then
  return redis.error_reply('NETWORKGONE the record of this client is gone')
end
if tonumber(ARGV[1]) <= tonumber(client[1]) then
  return 0
end
for at = 3, #ARGV, 2 do
  local key = ARGV[2] .. ARGV[at]
  local is_kept = redis.call('EXISTS', key) == 1
  redis.call('HSET', key, 'attempt', ARGV[at + 1])
  if not is_kept then
    redis.call('PEXPIRE', key, client[2])
  end
end
return 1
