-- Purpose: put back what a network keeps that is no task: what workers run, and which workers there were.
-- KEYS: 1 network, 2 hash to write to; where it is the record of a worker, 3 terminated_, killed_ or lost_worker_ids
-- ARGV: 1 name of this restore, 2 worker id ('' for none), then fields and values
-- Returns: 1
-- Row: none (no task changes state). Sent twice: the second writes the same again.
-- Loser: NETWORKGONE when the network was reset, or is restored by somebody else, since.
if redis.call('HGET', KEYS[1], 'restoring') ~= ARGV[1] then
  return redis.error_reply('NETWORKGONE the network is not being restored here any more')
end
redis.call('HSET', KEYS[2], unpack(ARGV, 3))
if ARGV[2] ~= '' then
  redis.call('SADD', KEYS[3], ARGV[2])
end
return 1
