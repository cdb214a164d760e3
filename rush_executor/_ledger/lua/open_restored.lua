-- Purpose: a network is restored: from now on it is there for all.
-- KEYS: 1 network, 2 all_tasks, 3 queued_tasks, 4 finished_tasks, 5 failed_tasks, 6 ends
-- ARGV: 1 name of this restore, 2 epoch, 3 sequence, 4 on_idle ('' for nothing), 5-8 how many tasks there must be in KEYS 2-5
-- Returns: {1}, or {0, how many tasks there are in KEYS 2-5} when something is missing, and then nothing was changed
-- Row: none: agents that wait for the network find it, and workers claim.
-- Loser: NETWORKGONE when the network was reset, or is restored by somebody else, since.
-- Sent twice: the second finds the epoch of the first.
local network = redis.call('HMGET', KEYS[1], 'restoring', 'epoch')
if network[2] == ARGV[2] then
  return {1}
elseif network[1] ~= ARGV[1] then
  return redis.error_reply('NETWORKGONE the network is not being restored here any more')
end
local counts = {redis.call('LLEN', KEYS[2]), redis.call('ZCARD', KEYS[3]), redis.call('LLEN', KEYS[4]), redis.call('SCARD', KEYS[5])}
for i = 1, 4 do
  if counts[i] ~= tonumber(ARGV[4 + i]) then
    return {0, unpack(counts)}
  end
end
redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'creator', '', 'initializer', '', 'sequence', ARGV[3])
if ARGV[4] ~= '' then
  redis.call('HSET', KEYS[1], 'on_idle', ARGV[4])
end
redis.call('HDEL', KEYS[1], 'restoring', 'restored')
if counts[3] + counts[4] > 0 then
  tell_ends(KEYS[6])
end
return {1}
