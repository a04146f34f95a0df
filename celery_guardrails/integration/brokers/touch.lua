-- Start the visibility timeout of live deliveries anew, by the server's clock.
-- KEYS: unacked_index (sorted set by time). ARGV: delivery tags. Answers how many the broker still knew.
local time = redis.call('TIME')
local now, known = time[1] + time[2] / 1000000, 0
for _, tag in ipairs(ARGV) do
  known = known + redis.call('ZADD', KEYS[1], 'XX', 'CH', now, tag)
end
return known
