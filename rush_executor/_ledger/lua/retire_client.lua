-- Purpose: a client leaves, or is found dead; the last one takes the network with it.
-- KEYS: 1 network, 2 client_ids, 3 client:<client>, 4 inbox:<client>, 5 functions:<client>, 6 queued_tasks,
--       7 idle_workers
-- ARGV: 1 client id, 2 prefix of task:, 3 prefix of blob:, 4 how many queued tasks to delete at most in this call,
--       5-8 prefixes of client:, inbox:, functions:, worker_bell:
-- Returns: how many queued tasks of nobody are left: send again until it is 0
-- Row: none: tasks of a client that is gone are of no interest to anybody, claim drops those that it meets.
-- Sent twice: deleting what is gone changes nothing.
-- A durable network stays, with its tasks and the functions that they need.
local is_durable = redis.call('HEXISTS', KEYS[1], 'durable') == 1
forget_client(KEYS[2], ARGV[1], KEYS[3], KEYS[4], KEYS[5], ARGV[3], is_durable)
clear_stale(KEYS[2], ARGV[5], ARGV[6], ARGV[7], is_durable)
if redis.call('SCARD', KEYS[2]) > 0 or is_durable or redis.call('HEXISTS', KEYS[1], 'kind') == 1 then
  -- One that keeps its tasks needs no client.
  return 0
end
local popped = redis.call('ZPOPMIN', KEYS[6], ARGV[4])
for i = 1, #popped, 2 do
  local key = ARGV[2] .. popped[i]
  drop(key, ARGV[3], redis.call('HGET', key, 'blob'))
end
local left = redis.call('ZCARD', KEYS[6])
if left == 0 then
  redis.call('DEL', KEYS[1])
  -- So that they learn of it.
  ring(KEYS[7], ARGV[8], redis.call('ZCARD', KEYS[7]))
end
return left
