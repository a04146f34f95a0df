-- KEYS: record. ARGV: holder or '' for a key that nobody holds, memory_ms.
-- Answers 1, or 0 where the key is not this holder's (nobody's).
leave(ARGV[1])
local r = load(KEYS[1])
if not r then return 0 end
local held = ARGV[1] ~= '' and r[1] == LEASED and r[6] == ARGV[1]
if not (held or (ARGV[1] == '' and r[1] == IDLE)) then return 0 end
if not r[10] then
  redis.call('DEL', KEYS[1])
  return 1
end
r[1], r[4], r[5], r[6], r[7], r[9] = IDLE, 0, 0, '', 0, ''
save(KEYS[1], r, tonumber(ARGV[2]))
return 1
