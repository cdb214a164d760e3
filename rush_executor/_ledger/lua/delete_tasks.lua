-- Purpose: delete the records of tasks that were cleared, some at a time.
-- KEYS: 1 cleared_tasks
-- ARGV: 1-2 prefixes of task:, blob:, 3 how many at most
-- Returns: {how many are left, blobs that were deleted}
-- Row: none. Sent twice: the second deletes the next ones.
local reply = {0}
local last = tonumber(ARGV[3]) - 1
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, last)) do
  local key = ARGV[1] .. id
  local task = redis.call('HMGET', key, 'state', 'blob', 'outcome')
  if task[1] ~= 'cleared' then
    drop(key, ARGV[2], task[2])
    reply[#reply + 1] = task[2] or nil
    if task[3] and string.find(task[3], '^[fe]') then
      local blob = string.sub(task[3], 2)
      redis.call('UNLINK', ARGV[2] .. blob)
      reply[#reply + 1] = blob
    end
  end
end
redis.call('LTRIM', KEYS[1], last + 1, -1)
reply[1] = redis.call('LLEN', KEYS[1])
return reply
