-- Purpose: say who gives no sign of life, and whether the server takes any.
-- KEYS: 1 agent_ids, 2 client_ids, 3 a stream that is not there
-- ARGV: 1-2 prefixes of heartbeat:, client:
-- Returns: {1, or 0 when the server refuses writes; agents without a heartbeat; clients whose lease is over}
-- Row: none, it only reads. Sent twice: it is read twice.
-- A server that is full, read-only, or cannot write to its disk still answers, but lets no heartbeat be set: all expire,
-- and nobody is dead. So a write is tried that would be refused as well, and that changes nothing.
local tried = redis.pcall('XADD', KEYS[3], 'NOMKSTREAM', '*', '', '')
local function missing(ids, prefix)
  local found = {}
  for _, id in ipairs(redis.call('SMEMBERS', ids)) do
    if redis.call('EXISTS', prefix .. id) == 0 then
      found[#found + 1] = id
    end
  end
  return found
end
return {type(tried) == 'table' and tried.err and 0 or 1, missing(KEYS[1], ARGV[1]), missing(KEYS[2], ARGV[2])}
