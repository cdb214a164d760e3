-- Purpose: a client leaves, or is found dead; the last one takes the network with it.
-- KEYS: 1 network, 2 client_ids, 3 client:<client>, 4 inbox:<client>, 5 client_bell:<client>, 6 functions:<client>,
--       7 queued_tasks, 8 bell
-- ARGV: 1 client id, 2 prefix of task:, 3 prefix of blob:, 4 how many queued tasks to delete at most in this call,
--       5-8 prefixes of client:, inbox:, client_bell:, functions:
-- Returns: how many queued tasks of nobody are left: send again until it is 0
-- Row: none: tasks of a client that is gone are of no interest to anybody, claim drops those that it meets.
-- Sent twice: deleting what is gone changes nothing.
-- Large outcomes that were not read any more; a hundred at a time, as each may be some 100 kB that are copied here.
local from = 0
repeat
  local entries = redis.call('LRANGE', KEYS[4], from, from + 199)
  for at = 2, #entries, 2 do
    local tag = string.sub(entries[at], 1, 1)
    if tag == 'f' or tag == 'e' then
      redis.call('UNLINK', ARGV[3] .. string.sub(entries[at], 2))
    end
  end
  from = from + 200
until #entries == 0
redis.call('SREM', KEYS[2], ARGV[1])
redis.call('UNLINK', KEYS[3], KEYS[4], KEYS[5], KEYS[6])
clear_stale(KEYS[2], ARGV[5], ARGV[6], ARGV[7], ARGV[8])
if redis.call('SCARD', KEYS[2]) > 0 then
  return 0
end
local popped = redis.call('ZPOPMIN', KEYS[7], ARGV[4])
for i = 1, #popped, 2 do
  local key = ARGV[2] .. popped[i]
  drop(key, ARGV[3], redis.call('HGET', key, 'blob'))
end
local left = redis.call('ZCARD', KEYS[7])
if left == 0 then
  redis.call('DEL', KEYS[1], KEYS[8])
end
return left
