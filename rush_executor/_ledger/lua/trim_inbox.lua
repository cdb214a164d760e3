-- Purpose: a client says up to where it has read its inbox and resolved its Futures; its lease is renewed.
-- KEYS: 1 client:<client>, 2 inbox:<client>, 3 client_bell:<client>, 4 functions:<client>
-- ARGV: 1 outcomes read since the client joined
-- Returns: how many were trimmed
-- Row: none. Loser: NETWORKGONE when the client's record is gone (server restarted empty, lease run out).
-- Sent twice: the position is absolute, so the second trims nothing.
local client = redis.call('HMGET', KEYS[1], 'trimmed', 'lease')
if not client[1] then
  return redis.error_reply('NETWORKGONE the record of this client is gone')
end
if redis.call('PTTL', KEYS[1]) < tonumber(client[2]) / 2 then
  for i = 1, 4 do
    redis.call('PEXPIRE', KEYS[i], client[2])
  end
end
local n = tonumber(ARGV[1]) - tonumber(client[1])
if n <= 0 then
  return 0
end
redis.call('LTRIM', KEYS[2], 2 * n, -1)
redis.call('HSET', KEYS[1], 'trimmed', ARGV[1])
return n
