-- Purpose: say what tasks are at, without the bulk of what they carry.
-- KEYS: none
-- ARGV: 1 prefix of task:, 2 how many bytes of a payload at most, then the ids
-- Returns: for each task that is there {id, state, worker, client, attempt, losses, pushed_at, started_at, ended_at,
--   beginning of the payload, its length, blob id, first byte of the outcome}; '' for what there is not
-- Row: none, it only reads. Sent twice: it is read twice.
local reply = {}
for i = 3, #ARGV do
  local task = redis.call('HMGET', ARGV[1] .. ARGV[i], 'state', 'worker', 'client', 'attempt', 'losses', 'pushed_at',
    'started_at', 'ended_at', 'payload', 'blob', 'outcome')
  if task[1] then
    local payload = task[9] or ''
    local peek = {ARGV[i]}
    for field = 1, 8 do
      peek[field + 1] = task[field] or ''
    end
    peek[10], peek[11] = string.sub(payload, 1, ARGV[2]), #payload
    peek[12], peek[13] = task[10] or '', string.sub(task[11] or '', 1, 1)
    reply[#reply + 1] = peek
  end
end
return reply
