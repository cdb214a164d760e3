-- Purpose: a client wants to be told the ends of tasks that another client, or it itself in an earlier life, has pushed.
-- KEYS: 1 client:<client>, 2 inbox:<client>
-- ARGV: 1 client id, 2 prefix of task:, then the ids
-- Returns: for each id 1, or 0 when there is no such task
-- Row: none (no task changes state). Loser: the client that was to be told before: it is not, any more.
-- Sent twice: what has ended is told twice; the second finds no Future that waits.
local replies, outcomes = {}, {}
for at = 3, #ARGV do
  local id = ARGV[at]
  local key = ARGV[2] .. id
  local task = redis.call('HMGET', key, 'state', 'outcome', 'losses')
  replies[#replies + 1] = task[1] and 1 or 0
  if task[1] then
    redis.call('HSET', key, 'client', ARGV[1])
    if task[2] then
      -- That of a lost worker says how many were lost.
      if task[3] and task[3] ~= '0' and string.find('FEfe', string.sub(task[2], 1, 1), 1, true) then
        outcomes[#outcomes + 1] = id
        outcomes[#outcomes + 1] = 'A' .. task[3]
      end
      outcomes[#outcomes + 1] = id
      outcomes[#outcomes + 1] = task[2]
    end
  end
end
if #outcomes > 0 then
  deliver(KEYS[1], KEYS[2], outcomes)
end
return replies
