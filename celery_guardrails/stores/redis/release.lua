-- KEYS: record. ARGV: holder, attempts to charge, crashes to charge, drop (1 or 0), memory_ms.
-- Answers {attempts, losses, fence, fingerprint, steps...}, or an empty list where the lease is not the holder's or was dropped.
leave(ARGV[1])
local r = load(KEYS[1])
if not r or r[1] ~= LEASED or r[6] ~= ARGV[1] then return {} end
if ARGV[4] == '1' then
  redis.call('DEL', KEYS[1])
  return {}
end
local attempts, crashes, losses = tonumber(ARGV[2]), tonumber(ARGV[3]), r[5] % BESIDE
if crashes > 0 and r[5] < BESIDE then losses = proven(losses) end
if attempts > 0 then losses = losses % SUSPICION end
r[1], r[4], r[5] = IDLE, r[4] + attempts, losses + crashes
r[6], r[7], r[9] = '', 0, ''
save(KEYS[1], r, tonumber(ARGV[5]))
return add_steps({r[4], r[5], int(r[3]), r[2]}, r[10] or {})
