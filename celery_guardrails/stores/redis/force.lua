-- KEYS: resource. ARGV: condition or '', milliseconds, and what resource.lua wants.
local s = load_state()
s[FORCED], s[FORCED_UNTIL] = ARGV[1], 0
if ARGV[1] ~= '' then s[FORCED_UNTIL] = now + tonumber(ARGV[2]) end
save_state(s)
return 1
