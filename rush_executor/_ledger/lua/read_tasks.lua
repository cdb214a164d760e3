-- Purpose: read the records of tasks.
-- KEYS: 1 finished_tasks, 2 network
-- ARGV: 1 prefix of task:, 2 '' to read the tasks whose ids follow, else index of the finished task to begin with, and 3 how
--       many at most
-- Returns: {number of finished tasks, creation and clearing of the network, then for each task: id, record}; the record is
--   empty where there is none
-- Row: none, it only reads. Sent twice: it is read twice.
local ids
local reply = {redis.call('LLEN', KEYS[1]), made_at(KEYS[2])}
if ARGV[2] == '' then
  ids = {unpack(ARGV, 3)}
else
  local first = tonumber(ARGV[2])
  ids = first < reply[1] and redis.call('LRANGE', KEYS[1], first, first + tonumber(ARGV[3]) - 1) or {}
end
for _, id in ipairs(ids) do
  reply[#reply + 1] = id
  reply[#reply + 1] = redis.call('HMGET', ARGV[1] .. id, 'state', 'payload', 'outcome', 'extra', 'more', 'worker',
    'pushed_at', 'started_at', 'ended_at', 'attempt', 'losses', 'blob', 'client')
end
return reply
