-- Purpose: a client says up to where it has read its inbox and resolved its Futures; its lease is renewed.
-- KEYS: 1 client:<client>, 2 inbox:<client>, 3 functions:<client>
-- ARGV: 1 id of the first entry that was not read, 2 number of the last batch that the client knows to have been taken, 3 how
--       many of the keys are on lease: 2 in a durable network, where functions are not, else 3
-- Returns: how many entries were trimmed
-- Row: none. Loser: NETWORKGONE when the client's record is gone (server restarted empty, lease run out), or older than what
--   the client knows (server put back to an older state: a snapshot, a fail-over): newer tasks are gone then.
-- Sent twice: the position is absolute, so the second trims nothing.
local client = redis.call('HMGET', KEYS[1], 'lease', 'pushed')
local lease = client[1]
if not lease then
  return redis.error_reply('NETWORKGONE the record of this client is gone')
end
if tonumber(client[2]) < tonumber(ARGV[2]) then
  return redis.error_reply('NETWORKGONE the record of this client is older than it was')
end
if redis.call('PTTL', KEYS[2]) < tonumber(lease) / 2 then
  for i = 1, tonumber(ARGV[3]) do
    redis.call('PEXPIRE', KEYS[i], lease)
  end
end
return redis.call('XTRIM', KEYS[2], 'MINID', ARGV[1])
