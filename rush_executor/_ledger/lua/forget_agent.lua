-- Purpose: take an agent that gave no sign of life, and whose workers have been put right, off the list.
-- KEYS: 1 agent_ids, 2 heartbeat:<agent>, 3 agent_workers:<agent>, 4 kills:<agent>
-- ARGV: 1 agent id
-- Returns: 1 when it is off the list; 0 when it must stay there: it is alive again, or a worker of it has registered since
-- Row: none. Loser: the reaper; it looks at the agent again next time. Sent twice: the second finds nothing to take off.
if redis.call('EXISTS', KEYS[2], KEYS[3]) > 0 then
  return 0
end
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[4])
return 1
