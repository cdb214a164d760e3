-- Purpose: read whole records of tasks that the network keeps, as many as one reply should hold.
-- KEYS: 1 all_tasks
-- ARGV: 1 prefix of task:, 2 index of the first task, 3 how many at most, 4 after how many bytes to stop
-- Returns: for each task: id, fields and values of its record (none where it is gone)
-- Row: none, it only reads. Sent twice: it is read twice.
local reply, bytes = {}, 0
local first, most = tonumber(ARGV[2]), tonumber(ARGV[4])
for _, id in ipairs(redis.call('LRANGE', KEYS[1], first, first + tonumber(ARGV[3]) - 1)) do
  local record = redis.call('HGETALL', ARGV[1] .. id)
  reply[#reply + 1] = id
  reply[#reply + 1] = record
  for _, text in ipairs(record) do
    bytes = bytes + #text
  end
  if bytes >= most then
    break
  end
end
return reply
