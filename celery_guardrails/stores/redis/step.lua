-- KEYS: record. ARGV: holder, memory_ms, name, content_type, content_encoding, data.
-- Answers 1, or 0 where the lease is not the holder's.
local r = load(KEYS[1])
if not r or r[1] ~= LEASED or r[6] ~= ARGV[1] then return 0 end
r[10] = r[10] or {}
r[10][ARGV[3]] = {ARGV[4], ARGV[5], ARGV[6]}
save(KEYS[1], r, tonumber(ARGV[2]) + math.max(0, r[7] - now))
return 1
