-- Purpose: a worker joins the network: from now on it may claim.
-- KEYS: 1 worker:<worker>, 2 worker_ids, 3 agent_workers:<agent>; where the network keeps its tasks,
--       4 terminated_worker_ids, 5 killed_worker_ids, 6 lost_worker_ids
-- ARGV: 1 worker id, 2 agent id, 3 host, 4 process id
-- Returns: 1
-- Row: none (no task changes state). Sent twice: the second writes the same again.
-- Loser: the worker, WORKERGONE when its agent has not announced it, or has taken it off again: this may be the last that
--   a worker sent before it was killed, and nobody would ever delete what it writes now.
if redis.call('SISMEMBER', KEYS[3], ARGV[1]) == 0 then
  return redis.error_reply('WORKERGONE this worker has been taken for lost before it had joined')
end
if KEYS[4] then
  -- It may have been here before, under the same id.
  redis.call('DEL', KEYS[1])
  for _, ended in ipairs({KEYS[4], KEYS[5], KEYS[6]}) do
    redis.call('SREM', ended, ARGV[1])
  end
end
redis.call('HSET', KEYS[1], 'agent', ARGV[2], 'host', ARGV[3], 'pid', ARGV[4])
redis.call('HSETNX', KEYS[1], 'joined_at', now())
redis.call('SADD', KEYS[2], ARGV[1])
return 1
