-- Purpose: say in which states tasks are.
-- KEYS: 1 worker_ids
-- ARGV: 1 prefix of task:, then the ids
-- Returns: {number of workers, the states in this order with blanks between, nothing for a task that there is not}
-- Row: none, it only reads. Sent twice: it is read twice.
local states = {}
for i = 2, #ARGV do
  states[i - 1] = redis.call('HGET', ARGV[1] .. ARGV[i], 'state') or ''
end
return {redis.call('SCARD', KEYS[1]), table.concat(states, ' ')}
