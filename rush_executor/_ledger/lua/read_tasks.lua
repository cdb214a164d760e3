-- Purpose: read the records of tasks.
-- KEYS: 1 finished_tasks, 2 network
-- ARGV: 1 prefix of task:, 2 '' to read the tasks whose ids follow, else index of the finished task to begin with, and 3 how
--       many at most
-- Returns: {number of finished tasks, creation and clearing of the network, then for each task that is there: head, payload,
--   outcome, extra, more}; the head is what is short, with blanks between: id, state, pushed_at, started_at, ended_at,
--   attempt, losses, blob id, client, worker
-- Row: none, it only reads. Sent twice: it is read twice.
-- One text for what is short: each part of an answer costs the server, and the reader, a third of a microsecond.
local ids
local reply = {redis.call('LLEN', KEYS[1]), made_at(KEYS[2])}
if ARGV[2] == '' then
  ids = {unpack(ARGV, 3)}
else
  local first = tonumber(ARGV[2])
  ids = first < reply[1] and redis.call('LRANGE', KEYS[1], first, first + tonumber(ARGV[3]) - 1) or {}
end
local at = 2
for _, id in ipairs(ids) do
  local task = redis.call('HMGET', ARGV[1] .. id, 'state', 'payload', 'outcome', 'extra', 'more', 'worker', 'pushed_at',
    'started_at', 'ended_at', 'attempt', 'losses', 'blob', 'client')
  if task[1] then
    reply[at + 1] = id .. ' ' .. task[1] .. ' ' .. (task[7] or '') .. ' ' .. (task[8] or '') .. ' ' .. (task[9] or '')
      .. ' ' .. (task[10] or '') .. ' ' .. (task[11] or '') .. ' ' .. (task[12] or '') .. ' ' .. (task[13] or '')
      .. ' ' .. (task[6] or '')
    reply[at + 2], reply[at + 3] = task[2] or '', task[3] or ''
    reply[at + 4], reply[at + 5] = task[4] or '', task[5] or ''
    at = at + 5
  end
end
return reply
