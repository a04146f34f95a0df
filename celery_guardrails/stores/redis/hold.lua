-- KEYS: resource. ARGV: holder, lease_ms, and what resource.lua wants. Answers 1, or 0 where the holder has no slot.
local holder, lease = ARGV[1], tonumber(ARGV[2])
if not redis.call('ZSCORE', SLOTS, holder) then return 0 end
redis.call('ZADD', SLOTS, now + lease, holder)
local s = load_state()
if s[PROBE] == holder then
  s[PROBE_UNTIL] = now + lease
  save_state(s)
end
return 1
