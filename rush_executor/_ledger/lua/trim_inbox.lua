-- Purpose: a client says up to where it has read its inbox and resolved its Futures; its lease is renewed.
-- KEYS: 1 client:<client>, 2 inbox:<client>, 3 functions:<client>
-- ARGV: 1 id of the first entry that was not read
-- Returns: how many entries were trimmed
-- Row: none. Loser: NETWORKGONE when the client's record is gone (server restarted empty, lease run out).
-- Sent twice: the position is absolute, so the second trims nothing.
local lease = redis.call('HGET', KEYS[1], 'lease')
if not lease then
  return redis.error_reply('NETWORKGONE the record of this client is gone')
end
if redis.call('PTTL', KEYS[2]) < tonumber(lease) / 2 then
  for i = 1, 3 do
    redis.call('PEXPIRE', KEYS[i], lease)
  end
end
return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[1])
