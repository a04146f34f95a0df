-- KEYS: record. ARGV: holder, lease_ms, memory_ms. Answers 1, or 0 where the lease is not the holder's.
local r = load(KEYS[1])
if not r or r[1] ~= LEASED or r[6] ~= ARGV[1] then return 0 end
r[7] = now + tonumber(ARGV[2])
save(KEYS[1], r, tonumber(ARGV[3]) + tonumber(ARGV[2]))
return 1
