-- Purpose: say what tasks are at, without the bulk of what they carry.
-- KEYS: none
-- ARGV: 1 prefix of task:, 2 how many bytes of a payload at most, then the ids
-- Returns: for each task that is there {id, state, worker, client, attempt, pushed_at, started_at, ended_at, beginning of
--   the payload, its length, blob id, first byte of the outcome}; '' for what there is not
-- Row: none, it only reads. Sent twice: it is read twice.
local reply = {}
for i = 3, #ARGV do
  local task = redis.call('HMGET', ARGV[1] .. ARGV[i], 'state', 'worker', 'client', 'attempt', 'pushed_at', 'started_at',
    'ended_at', 'payload', 'blob', 'outcome')
  if task[1] then
    local payload = task[8] or ''
    local peek = {ARGV[i]}
    for field = 1, 7 do
      peek[field + 1] = task[field] or ''
    end
    peek[9], peek[10] = string.sub(payload, 1, ARGV[2]), #payload
    peek[11], peek[12] = task[9] or '', string.sub(task[10] or '', 1, 1)
    reply[#reply + 1] = peek
  end
end
return reply
