-- Park one message until its time; by the server's clock, so that no worker's clock matters.
-- KEYS: index (sorted set by due time), messages (hash). ARGV: member, payload, delay in ms.
local now = redis.call('TIME')
local due = now[1] * 1000 + math.floor(now[2] / 1000) + tonumber(ARGV[3])
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[1], due, ARGV[1])
return due
