-- Move due messages to their lists, the earliest first. KEYS: index, messages. ARGV: limit, ms to put off one that cannot move.
-- A member is 32 characters of id and the key of the target list.
-- Returns how many moved, ms until the next is due (-1: none waits), and the first error, or ''.
local now = redis.call('TIME')
local ms = now[1] * 1000 + math.floor(now[2] / 1000)
local moved, failure = 0, ''
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ms, 'LIMIT', 0, tonumber(ARGV[1]))) do
    local payload = redis.call('HGET', KEYS[2], member)
    local pushed = payload and redis.pcall('LPUSH', string.sub(member, 33), payload)
    if type(pushed) == 'table' and pushed.err then
        -- A script is not rolled back: the message stays parked, and steps aside lest it hold up all others (its target
        -- key may be no list).
        if failure == '' then failure = pushed.err end
        redis.call('ZADD', KEYS[1], ms + tonumber(ARGV[2]), member)
    else
        redis.call('ZREM', KEYS[1], member)
        redis.call('HDEL', KEYS[2], member)
        if pushed then moved = moved + 1 end
    end
end
local first = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
local wait = -1
if first[2] then wait = math.max(0, tonumber(first[2]) - ms) end
return {moved, wait, failure}
