-- Purpose: a worker hands in the outcomes of tasks that the network keeps.
-- KEYS: 1 running_tasks:<worker>, 2 finished_tasks, 3 failed_tasks, 4 ends; of a worker that waits then
--       5 network, 6 worker_ids, 7 idle_workers, 8 worker_bell:<worker>, 9 queued_tasks and, but for calls,
--       10 worker_queue:<worker>
-- ARGV: 1 worker id, 2 epoch, 3-6 prefixes of task:, client:, inbox:, blob:, 7-8 of one that waits: how many
--       tasks to claim at most, and for how many seconds it waits, else '', then for each task: id, attempt ('' for the one that
--       runs), outcome (a tag byte and a body, or the id of a blob that has a TTL), what is to be known beside it ('' for
--       nothing)
-- Returns: the ids that were refused
-- Row: running finish -> finished, running fail -> failed (the outcome's first byte says which).
-- Loser: a worker that does not hold this attempt is told the id; its outcome is dropped.
-- Sent twice: a task that has ended with this worker's attempt and this very outcome counts as accepted.
-- A call has a client, which is told as well; its arguments are not kept.
local refused, finished, failed, inboxes = {}, {}, {}, {}
local time = now()
for at = 9, #ARGV, 4 do
  local id, attempt, outcome = ARGV[at], ARGV[at + 1], ARGV[at + 2]
  local key = ARGV[3] .. id
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
      redis.call('PERSIST', ARGV[6] .. string.sub(outcome, 2))
    end
    local ended = is_failure and failed or finished
    ended[#ended + 1] = id
    local client = task[4]
    if client then
      forget_call(key, ARGV[6], task[6])
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
  deliver(ARGV[4] .. client, ARGV[5] .. client, outcomes)
end
if KEYS[5] then
  rest(ARGV[1], ARGV[2], ARGV[7], ARGV[8], KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[1], KEYS[9], KEYS[10], ARGV[3], ARGV[4], ARGV[6])
end
return refused
