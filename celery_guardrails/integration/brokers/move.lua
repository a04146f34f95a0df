-- Move an item from one list to another. KEYS: from, to. ARGV: the item, what takes its place.
-- Returns 1, or 0 where the item is not there: somebody else took it, and nothing is changed.
-- A script is not rolled back: what can fail (no memory, no list) comes first, and what came first is undone.
redis.call('LPUSH', KEYS[2], ARGV[2])
local removed = redis.pcall('LREM', KEYS[1], -1, ARGV[1])
if removed == 1 then return 1 end
redis.call('LPOP', KEYS[2])
return removed
