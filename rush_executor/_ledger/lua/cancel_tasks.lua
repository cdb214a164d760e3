-- Purpose: a client takes back tasks that no worker has claimed.
-- KEYS: 1 queued_tasks, 2 client:<client>, 3 inbox:<client>
-- ARGV: 1 prefix of task:, 2 prefix of blob:, 3 client id, then the ids
-- Returns: for each id 1 cancelled, 0 running, 2 claimed along with others: it may not have been started, and then is back
--   in the queue in a few milliseconds; -1 no such task of this client: its outcome is in the inbox, or was, or that another
--   client is told it now
-- Row: queued cancel -> cancelled.
-- Loser: a client that comes after the claim gets 0 or 2.
-- Sent twice: the second finds no task (-1); the outcome that the first wrote into the inbox tells the client what it
-- was. So the inbox is the one place where every end of a task is told.
local replies = {}
local outcomes = {}
for at = 4, #ARGV do
  local id = ARGV[at]
  local key = ARGV[1] .. id
  local task = redis.call('HMGET', key, 'state', 'blob', 'batch', 'client')
  if task[4] ~= ARGV[3] then
    replies[#replies + 1] = -1
  elseif task[1] == 'queued' then
    redis.call('ZREM', KEYS[1], id)
    drop(key, ARGV[2], task[2])
    outcomes[#outcomes + 1] = id
    outcomes[#outcomes + 1] = 'C'
    replies[#replies + 1] = 1
  else
    replies[#replies + 1] = task[3] == '1' and 0 or 2
  end
end
if #outcomes > 0 then
  deliver(KEYS[2], KEYS[3], outcomes)
end
return replies
