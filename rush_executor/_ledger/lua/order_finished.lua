-- Purpose: say in which order restored tasks have finished.
-- KEYS: 1 network, 2 finished_tasks
-- ARGV: 1 name of this restore, 2 number of the batch, 3 prefix of task:, then ids
-- Returns: how many were put in: those that are there, and have finished
-- Row: none: a task that is put in has finished already.
-- Loser: NETWORKGONE when the network was reset, or is restored by somebody else, since.
-- Sent twice: as in `restore_tasks.lua`, whose batches these are numbered with.
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
local finished = {}
for at = 4, #ARGV do
  if redis.call('HGET', ARGV[3] .. ARGV[at], 'state') == 'finished' then
    finished[#finished + 1] = ARGV[at]
  end
end
if #finished > 0 then
  redis.call('RPUSH', KEYS[2], unpack(finished))
end
redis.call('HSET', KEYS[1], 'restored', number)
return #finished
