-- KEYS: resource. ARGV: holder, first attempt (1 or 0), lease_ms, and what resource.lua wants. Answers 'in', or {why, wait_ms}.
local why, wait = enter(ARGV[1], ARGV[2] == '1', tonumber(ARGV[3]))
if why then return {why, int(wait)} end
return 'in'
