-- Purpose: a network that keeps its tasks is created, or found.
-- KEYS: 1 network
-- ARGV: 1 epoch to use if the network is new, 2 folder for large objects to use if it has none yet ('' for none)
-- Returns: {epoch, kind, folder}; the kind of one that is being restored, and has no epoch yet, is 'restoring'
-- Row: none (no task changes state). Sent twice: the second finds the network of the first and answers the same.
if redis.call('HEXISTS', KEYS[1], 'restoring') == 1 then
  return {'', 'restoring', ''}
end
if redis.call('HSETNX', KEYS[1], 'epoch', ARGV[1]) == 1 then
  redis.call('HSET', KEYS[1], 'kind', 'tasks', 'creator', '', 'initializer', '')
end
if ARGV[2] ~= '' and redis.call('HGET', KEYS[1], 'kind') == 'tasks' then
  redis.call('HSETNX', KEYS[1], 'large_objects', ARGV[2])
end
local network = redis.call('HMGET', KEYS[1], 'epoch', 'kind', 'large_objects')
return {network[1], network[2] or 'calls', network[3] or ''}
