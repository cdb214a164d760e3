-- Purpose: a client wants to be told the ends of tasks that another client, or it itself in an earlier life, has pushed.
-- KEYS: 1 client:<client>, 2 inbox:<client>
-- ARGV: 1 client id, 2-4 prefixes of task:, client:, inbox:, then the ids
-- Returns: for each id 1, or 0 when there is no such task: then nothing is changed
-- Row: none (no task changes state). Loser: the client that was to be told before: it is not, any more, and is told that ('M').
-- Sent twice: what has ended is told twice; the second finds no Future that waits. Nobody else loses a task again.
local replies, known = {}, true
for at = 5, #ARGV do
  local is_there = redis.call('HEXISTS', ARGV[2] .. ARGV[at], 'state')
  replies[#replies + 1] = is_there
  known = known and is_there == 1
end
if not known then
  return replies
end
local outcomes, moved = {}, {}
for at = 5, #ARGV do
  local id = ARGV[at]
  local key = ARGV[2] .. id
  local task = redis.call('HMGET', key, 'outcome', 'losses', 'client')
  redis.call('HSET', key, 'client', ARGV[1])
  if task[1] then
    -- That of a lost worker says how many were lost.
    if task[2] and task[2] ~= '0' and string.find('FEfe', string.sub(task[1], 1, 1), 1, true) then
      outcomes[#outcomes + 1] = id
      outcomes[#outcomes + 1] = 'A' .. task[2]
    end
    outcomes[#outcomes + 1] = id
    outcomes[#outcomes + 1] = task[1]
  elseif task[3] and task[3] ~= ARGV[1] then
    local told = moved[task[3]] or {}
    moved[task[3]] = told
    told[#told + 1] = id
    told[#told + 1] = 'M'
  end
end
if #outcomes > 0 then
  deliver(KEYS[1], KEYS[2], outcomes)
end
for client, told in pairs(moved) do
  deliver(ARGV[3] .. client, ARGV[4] .. client, told)
end
return replies
