-- Purpose: say which tasks are in which state, at one moment.
-- KEYS: 1 queued_tasks, 2 finished_tasks, 3 failed_tasks, 4 worker_ids, 5 network
-- ARGV: 1-2 prefixes of worker_queue:, running_tasks:, 3 index of the first finished task that is asked for, then states
-- Returns: creation and clearing of the network, then for each state asked for the list of ids
-- Row: none, it only reads. Sent twice: it is read twice.
local lists = {made_at(KEYS[5])}
for i = 4, #ARGV do
  local state = ARGV[i]
  local ids = {}
  if state == 'finished' then
    ids = redis.call('LRANGE', KEYS[2], ARGV[3], -1)
  elseif state == 'failed' then
    ids = redis.call('SMEMBERS', KEYS[3])
  else
    if state == 'queued' then
      ids = redis.call('ZRANGE', KEYS[1], 0, -1)
    end
    for _, worker in ipairs(redis.call('SMEMBERS', KEYS[4])) do
      local own = state == 'queued' and redis.call('ZRANGE', ARGV[1] .. worker, 0, -1)
        or redis.call('SMEMBERS', ARGV[2] .. worker)
      for _, id in ipairs(own) do
        ids[#ids + 1] = id
      end
    end
  end
  lists[#lists + 1] = ids
end
return lists
