-- KEYS: record. ARGV: holder, fingerprint, lease_ms, memory_ms, owner, attempts known to the message.
-- Answers {'claimed', fence, attempts, crashes, takeover} | {'busy', wait_ms, attempts, crashes}
--       | {'completed', fence, task_id, content_type, content_encoding, data} | {'conflict'}
local holder, fingerprint, lease, memory, owner = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local known = tonumber(ARGV[6])
local r = load(KEYS[1])
if not r then
  save(KEYS[1], {LEASED, fingerprint, now_us, known, 0, holder, now + lease, now, owner}, memory + lease)
  return {'claimed', int(now_us), known, 0, 0}
end
if fingerprint ~= '' and r[2] ~= '' and fingerprint ~= r[2] then return {'conflict'} end
if r[1] == COMPLETED then return {'completed', int(r[3]), r[5], r[6], r[7], r[8]} end
local crashes, takeover = r[5], 0
if r[1] == LEASED then
  if r[6] == holder then
    r[7] = now + lease
    save(KEYS[1], r, memory + lease)
    return {'claimed', int(r[3]), r[4], r[5], 0}
  end
  if r[7] > now then return {'busy', r[7] - now, r[4], r[5]} end
  takeover = 1
  if known <= r[4] then crashes = crashes + 1 end
end
local fence = math.max(r[3] + 1, now_us)
local attempts = math.max(known, r[4])
if fingerprint == '' then fingerprint = r[2] end
save(KEYS[1], {LEASED, fingerprint, fence, attempts, crashes, holder, now + lease, now, owner}, memory + lease)
return {'claimed', int(fence), attempts, crashes, takeover}
