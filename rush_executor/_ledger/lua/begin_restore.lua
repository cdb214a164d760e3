-- Purpose: reserve the name of a network that is about to be restored.
-- KEYS: 1 network, 2 all_tasks
-- ARGV: 1 name of this restore
-- Returns: 1 when the name is reserved; 0 when there is such a network, -1 when another restore has reserved the name
-- Row: none. Sent twice: the second finds the reservation of the first.
-- Until `open_restored.lua` the network has no epoch: agents wait for it, and nobody can make or claim tasks. That it keeps
-- its tasks is said at once: no executor takes it for its own.
local restoring = redis.call('HGET', KEYS[1], 'restoring')
if restoring then
  return restoring == ARGV[1] and 1 or -1
end
if redis.call('EXISTS', KEYS[1], KEYS[2]) > 0 then
  return 0
end
redis.call('HSET', KEYS[1], 'kind', 'tasks', 'restoring', ARGV[1], 'restored', 0)
return 1
