-- KEYS: record. ARGV: holder, fingerprint, fence, retention_ms, task_id, content_type, content_encoding, data.
-- Answers 1, or 0 where another holder has the key.
local holder, fingerprint, fence = ARGV[1], ARGV[2], tonumber(ARGV[3])
leave(holder)
local r = load(KEYS[1])
if r then
  if r[1] == COMPLETED then
    if r[3] == fence then return 1 end
    return 0
  end
  if r[1] ~= LEASED or r[6] ~= holder then return 0 end
  fingerprint = r[2]
end
save(KEYS[1], {COMPLETED, fingerprint, fence, now, ARGV[5], ARGV[6], ARGV[7], ARGV[8]}, tonumber(ARGV[4]))
return 1
