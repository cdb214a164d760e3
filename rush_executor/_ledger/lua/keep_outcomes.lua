-- Purpose: a worker hands in the outcomes of tasks that the network keeps.
-- KEYS: 1 running_tasks:<worker>, 2 finished_tasks, 3 failed_tasks, 4 ends
-- ARGV: 1 worker id, 2-5 prefixes of task:, client:, inbox:, blob:, then for each task: id, attempt ('' for the one that
--       runs), outcome (a tag byte and a body, or the id of a blob that has a TTL), what is to be known beside it ('' for
--       nothing)
-- Returns: the ids that were refused
-- Row: running finish -> finished, running fail -> failed (the outcome's first byte says which).
-- Loser: a worker that does not hold this attempt is told the id; its outcome is dropped.
-- Sent twice: a task that has ended with this worker's attempt and this very outcome counts as accepted.
-- A call has a client, which is told as well; its arguments are not kept.
local refused, finished, failed, inboxes = {}, {}, {}, {}
local time = now()
for at = 6, #ARGV, 4 do
  local id, attempt, outcome = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local key = ARGV[2] .. id
  local task = redis.call('HMGET', key, 'worker', 'attempt', 'state', 'client', 'losses', 'blob')
  local is_mine = task[1] == ARGV[1] and (attempt == '' or task[2] == attempt)
  if is_mine and task[3] == 'running' then
    local tag = string.sub(outcome, 1, 1)
    local is_failure = tag == 'E' or tag == 'e'
    local state = is_failure and 'failed' or 'finished'
    if ARGV[at + 3] == '' then
      redis.call('HSET', key, 'state', state, 'outcome', outcome, 'ended_at', time)
    else
      redis.call('HSET', key, 'state', state, 'outcome', outcome, 'ended_at', time, 'more', ARGV[at + 3])
    end
    if tag == 'f' or tag == 'e' then
      redis.call('PERSIST', ARGV[5] .. string.sub(outcome, 2))
    end
    local ended = is_failure and failed or finished
    ended[#ended + 1] = id
    local client = task[4]
    if client then
      forget_call(key, ARGV[5], task[6])
      local inbox = inboxes[client] or {}
      inboxes[client] = inbox
      if task[5] and task[5] ~= '0' then
        inbox[#inbox + 1] = id
        inbox[#inbox + 1] = 'A' .. task[5]
      end
      inbox[#inbox + 1] = id
      inbox[#inbox + 1] = outcome
    end
  elseif not (is_mine and (task[3] == 'finished' or task[3] == 'failed')
      and redis.call('HGET', key, 'outcome') == outcome) then
    refused[#refused + 1] = id
  end
end
if #finished > 0 then
  redis.call('SREM', KEYS[1], unpack(finished))
  redis.call('RPUSH', KEYS[2], unpack(finished))
end
if #failed > 0 then
  redis.call('SREM', KEYS[1], unpack(failed))
  redis.call('SADD', KEYS[3], unpack(failed))
end
if #finished + #failed > 0 then
  tell_ends(KEYS[4])
end
for client, outcomes in pairs(inboxes) do
  deliver(ARGV[3] .. client, ARGV[4] .. client, outcomes)
end
return refused
