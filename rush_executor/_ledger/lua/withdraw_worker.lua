-- Purpose: a worker breaks off its wait: nothing is to be handed to it, and what was goes back.
-- KEYS: 1 running_tasks:<worker>, 2 queued_tasks, 3 idle_workers, 4 network, 5 worker_bell:<worker>
-- ARGV: 1 worker id, 2-5 prefixes of task:, client:, blob:, worker_bell:, then the ids of tasks that it holds and knows of
-- Returns: how many went back
-- Row: none of its own: as release_tasks, of what the worker does not know of.
-- Loser: what the worker does not hold (any more) is passed over.
-- Sent twice: at once, the second finds nothing. Later it would be another withdrawal; so it is never sent again.
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('DEL', KEYS[5])
local known, held = {}, {}
for i = 6, #ARGV do
  known[ARGV[i]] = true
end
for _, id in ipairs(redis.call('SMEMBERS', KEYS[1])) do
  if not known[id] then
    held[#held + 1] = id
    held[#held + 1] = false
  end
end
local durable = redis.call('HGET', KEYS[4], 'durable')
return put_back(ARGV[1], held, durable, KEYS[1], KEYS[2], KEYS[3], ARGV[2], ARGV[3], ARGV[4], ARGV[5])
