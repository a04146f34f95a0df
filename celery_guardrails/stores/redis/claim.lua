-- KEYS: record. ARGV: holder, fingerprint, lease_ms, memory_ms, owner, attempts known to the message, others run beside (1 or 0).
-- Answers 'claimed fence attempts losses takeover now_ms', or {that, steps...} | 'busy wait_ms attempts losses now_ms'
--       | {'completed fence now_ms', task_id, content_type, content_encoding, data} | 'conflict now_ms'
--       | 'refused why wait_ms attempts losses now_ms' where the resource let nobody in.
-- Losses are crashes and suspicions as in a record, without what is said of others beside.
-- One string where there is no more to say: it is the answer to nearly every claim, and quick to read.
local holder, fingerprint, lease, memory, owner = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[5]
local known, beside = tonumber(ARGV[6]), BESIDE * tonumber(ARGV[7])
local r = load(KEYS[1])
local function refused(attempts, losses)
  local why, wait = enter(holder, attempts == 0 and losses == 0, lease)
  if why then return words('refused', why, int(wait), attempts, losses, int(now)) end
  return nil
end
if not r then
  local answer = refused(known, 0)
  if answer then return answer end
  save(KEYS[1], {LEASED, fingerprint, now_us, known, beside, holder, now + lease, now, owner}, memory + lease)
  return words('claimed', int(now_us), known, 0, 0, int(now))
end
if fingerprint ~= '' and r[2] ~= '' and fingerprint ~= r[2] then return words('conflict', int(now)) end
if r[1] == COMPLETED then return {words('completed', int(r[3]), int(now)), r[5], r[6], r[7], r[8]} end
local function claimed(fence, attempts, losses, takeover)
  local answer = words('claimed', int(fence), attempts, losses, takeover, int(now))
  if r[10] then return add_steps({answer}, r[10]) end
  return answer
end
local losses, takeover = r[5] % BESIDE, 0
if r[1] == LEASED then
  if r[6] == holder then
    local answer = refused(r[4], losses)
    if answer then return answer end
    r[5], r[7] = losses + beside, now + lease
    save(KEYS[1], r, memory + lease)
    return claimed(r[3], r[4], losses, 0)
  end
  if r[7] > now then return words('busy', int(r[7] - now), r[4], losses, int(now)) end
  takeover = 1
  if known <= r[4] then
    if r[5] >= BESIDE then losses = losses + SUSPICION else losses = proven(losses) + 1 end
  end
end
local fence = math.max(r[3] + 1, now_us)
local attempts = math.max(known, r[4])
local answer = refused(attempts, losses)
if answer then return answer end
if fingerprint == '' then fingerprint = r[2] end
save(KEYS[1], {LEASED, fingerprint, fence, attempts, losses + beside, holder, now + lease, now, owner, r[10]}, memory + lease)
return claimed(fence, attempts, losses, takeover)
