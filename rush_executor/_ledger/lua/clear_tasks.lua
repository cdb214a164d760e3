-- Purpose: a network forgets its tasks; its workers stay, and what they are to run.
-- KEYS: 1 network, 2 all_tasks, 3 cleared_tasks, 4 queued_tasks, 5 finished_tasks, 6 failed_tasks, 7 ends, 8 worker_ids
-- ARGV: 1 name of this clearing, 2-6 prefixes of task:, blob:, worker_queue:, running_tasks:, worker_bell:, 7 how long a worker may take to
--       learn that its task is gone (milliseconds)
-- Returns: {1, blobs that were deleted}; {0} when the records of an earlier clearing are still to be deleted, and then nothing was changed
-- Row: none: from here on there are no such tasks. Their records are deleted by delete_tasks.
-- Loser: a worker that holds one of them: its outcome is refused. Such a record stays for a while, empty: a worker that has
--   made its task without waiting for the answer would make it once more, if it found none.
-- Sent twice: the network bears the name of this clearing.
if redis.call('HGET', KEYS[1], 'cleared') == ARGV[1] then
  return {1}
end
if redis.call('EXISTS', KEYS[3]) == 1 then
  return {0}
end
redis.call('HSET', KEYS[1], 'cleared', ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('RENAME', KEYS[2], KEYS[3])
end
redis.call('UNLINK', KEYS[4], KEYS[5], KEYS[6])
local reply = {1}
for _, worker in ipairs(redis.call('SMEMBERS', KEYS[8])) do
  local running = ARGV[5] .. worker
  for _, id in ipairs(redis.call('SMEMBERS', running)) do
    local key = ARGV[2] .. id
    local blob = redis.call('HGET', key, 'blob')
    drop(key, ARGV[3], blob)
    reply[#reply + 1] = blob or nil
    redis.call('HSET', key, 'state', 'cleared')
    redis.call('PEXPIRE', key, ARGV[7])
  end
  redis.call('UNLINK', running, ARGV[4] .. worker)
  if redis.call('DEL', ARGV[6] .. worker) == 1 then
    -- What lay there may have been one of the tasks; it was woken, and is to look for others.
    redis.call('RPUSH', ARGV[6] .. worker, '1')
  end
end
tell_ends(KEYS[7])
return reply
