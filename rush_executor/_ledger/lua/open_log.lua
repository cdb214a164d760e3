-- Purpose: a worker begins its log, or goes on with it. From there on it only appends to what is there, so that what a
--   reset deletes stays deleted.
-- KEYS: 1 network, 2 log:<worker>
-- ARGV: 1 epoch of the network, 2 number of a batch, 3 the batch
-- Returns: id of the entry: milliseconds of the server's clock, "-", a number
-- Row: none. Sent twice: the same batch twice, of which readers take one.
-- Loser: NETWORKGONE when the network is not the one that the worker was started for: nobody would delete the log.
if redis.call('HGET', KEYS[1], 'epoch') ~= ARGV[1] then
  return redis.error_reply('NETWORKGONE the network is not the one that this worker was started for')
end
return redis.call('XADD', KEYS[2], '*', ARGV[2], ARGV[3])
