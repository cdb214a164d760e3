-- Purpose: say of workers that they were asked to end, and will when they have finished what they run.
-- KEYS: 1 worker_ids
-- ARGV: 1 prefix of worker:, then worker ids
-- Returns: 1
-- Row: none (no task changes state). Sent twice: the second writes the same again.
-- Loser: of a worker that is not there (any more), nothing is written.
for i = 2, #ARGV do
  if redis.call('SISMEMBER', KEYS[1], ARGV[i]) == 1 then
    redis.call('HSET', ARGV[1] .. ARGV[i], 'state', 'draining')
  end
end
return 1
