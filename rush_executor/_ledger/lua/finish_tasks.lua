-- Purpose: a worker hands in the outcomes of tasks.
-- KEYS: 1 running_tasks:<worker>, 2 network; of a worker that waits then
--       3 worker_ids, 4 idle_workers, 5 worker_bell:<worker>, 6 queued_tasks
-- ARGV: 1 worker id, 2 epoch, 3-6 prefixes of task:, client:, inbox:, blob:, 7-8 of one that waits: how many
--       tasks to claim at most, and for how many seconds it waits, else '',
--       then for each task: id, attempt, outcome (a tag byte and a body, or the id of a blob that has a TTL)
-- Returns: the ids that were refused
-- Row: running finish -> finished, running fail -> failed (the outcome's first byte says which).
-- Loser: a worker that does not hold this attempt is told the id; its outcome is dropped.
-- Sent twice: the first has removed the task, so the second is refused and changes nothing.
-- A refused outcome's blob is left to its TTL: if this is the second sending, the client is about to read it. That of an
-- accepted one (tags e and f) lives as long as the inbox that names it; where nobody waits for it, it is deleted.
-- The outcome is written here, in the same step that ends the task, never before. Where workers were lost over the task,
-- how many is told first ('A' and the number). Nothing of a task is left here, so those that have failed are counted.
local refused = {}
local accepted = {}
local inboxes = {}
local n_failed = 0
for at = 9, #ARGV, 3 do
  local id = ARGV[at]
  local key = ARGV[3] .. id
  local task = redis.call('HMGET', key, 'worker', 'attempt', 'client', 'blob', 'losses')
  if task[1] == ARGV[1] and task[2] == ARGV[at + 1] then
    drop(key, ARGV[6], task[4])
    accepted[#accepted + 1] = id
    local inbox = inboxes[task[3]]
    if not inbox then
      inbox = {}
      inboxes[task[3]] = inbox
    end
    if task[5] and task[5] ~= '0' then
      inbox[#inbox + 1] = id
      inbox[#inbox + 1] = 'A' .. task[5]
    end
    inbox[#inbox + 1] = id
    inbox[#inbox + 1] = ARGV[at + 2]
    local tag = string.sub(ARGV[at + 2], 1, 1)
    if tag == 'E' or tag == 'e' then
      n_failed = n_failed + 1
    end
  else
    refused[#refused + 1] = id
  end
end
if #accepted > 0 then
  redis.call('SREM', KEYS[1], unpack(accepted))
end
count_failed(KEYS[2], n_failed)
for client, outcomes in pairs(inboxes) do
  local lease = deliver(ARGV[4] .. client, ARGV[5] .. client, outcomes)
  for at = 2, #outcomes, 2 do
    local tag = string.sub(outcomes[at], 1, 1)
    if tag == 'f' or tag == 'e' then
      local blob = ARGV[6] .. string.sub(outcomes[at], 2)
      if lease then
        redis.call('PEXPIRE', blob, lease)
      else
        redis.call('UNLINK', blob)
      end
    end
  end
end
if KEYS[3] then
  rest(ARGV[1], ARGV[2], ARGV[7], ARGV[8], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[1], KEYS[6], nil, ARGV[3], ARGV[4], ARGV[6])
end
return refused
