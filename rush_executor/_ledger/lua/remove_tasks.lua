-- Purpose: tasks that the network keeps are taken out of the queue.
-- KEYS: 1 queued_tasks, 2 failed_tasks, 3 ends
-- ARGV: 1 prefix of task:, 2 outcome, 3 prefix of worker_queue:, then for each task: id, worker in whose queue it is ('' for
--       the one of all)
-- Returns: the ids of those that were taken out
-- Row: queued remove -> failed.
-- Loser: a task that a worker has claimed meanwhile is passed over.
-- Sent twice: a task that has failed with this outcome counts as taken out.
local removed = {}
local time = now()
local is_news = false
for at = 4, #ARGV, 2 do
  local id = ARGV[at]
  local key = ARGV[1] .. id
  local queue = ARGV[at + 1] == '' and KEYS[1] or ARGV[3] .. ARGV[at + 1]
  if redis.call('ZREM', queue, id) == 1 then
    kept_failure(key, id, KEYS[2], ARGV[2], time)
    removed[#removed + 1] = id
    is_news = true
  else
    local task = redis.call('HMGET', key, 'state', 'outcome')
    if task[1] == 'failed' and task[2] == ARGV[2] then
      removed[#removed + 1] = id
    end
  end
end
if is_news then
  tell_ends(KEYS[3])
end
return removed
