-- Purpose: say to all clients that this network is broken: its initializer fails.
-- KEYS: 1 network, 2 client_ids
-- ARGV: 1 epoch, 2 outcome to deliver, 3-4 prefixes of client:, inbox:
-- Returns: 1 when this call broke it, 0 when it was broken, or is another network by now
-- Row: none: each client fails its own Futures. Sent twice: only the first finds a network that is not broken.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] or redis.call('HSETNX', KEYS[1], 'broken', ARGV[2]) == 0 then
  return 0
end
for _, client in ipairs(redis.call('SMEMBERS', KEYS[2])) do
  deliver(ARGV[3] .. client, ARGV[4] .. client, {'', ARGV[2]})
end
return 1
