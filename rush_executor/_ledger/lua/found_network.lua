-- Purpose: a network that keeps its tasks is created, or found.
-- KEYS: 1 network
-- ARGV: 1 epoch to use if the network is new
-- Returns: {epoch, kind}; the kind of one that is being restored, and has no epoch yet, is 'restoring'
-- Row: none (no task changes state). Sent twice: the second finds the network of the first and answers the same.
if redis.call('HEXISTS', KEYS[1], 'restoring') == 1 then
  return {'', 'restoring'}
end
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'kind', 'tasks', 'creator', '', 'initializer', '')
end
local network = redis.call('HMGET', KEYS[1], 'epoch', 'kind')
return {network[1], network[2] or 'calls'}
