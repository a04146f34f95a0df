-- KEYS: record. ARGV: memory_ms. Answers the record's fields as they were (see lookup.lua), or an empty list where there is no lease.
local r = load(KEYS[1])
if not r or r[1] ~= LEASED then return {} end
local before = fields(r)
r[1], r[3], r[5], r[6], r[7], r[9] = IDLE, r[3] + 1, r[5] % BESIDE, '', 0, ''
save(KEYS[1], r, tonumber(ARGV[1]))
return before
