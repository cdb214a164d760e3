-- Purpose: a client asks that a task that is being run be ended.
-- KEYS: 1 task:<task>
-- ARGV: 1 task id, 2-3 prefixes of worker:, kills:, 4 how long the request is kept, in ms
-- Returns: 1 when the agent of its worker was told; 0 when the task is not running, or its worker's agent not known
-- Row: none: the agent ends the task, with `lose_worker.lua`. Sent twice: the request is a member of a set.
-- Who is told by the message and misses it finds the request at its next look.
local task = redis.call('HMGET', KEYS[1], 'state', 'worker')
if task[1] ~= 'running' then
  return 0
end
return want_end(ARGV[2] .. task[2], ARGV[3], ARGV[1], ARGV[4]) and 1 or 0
