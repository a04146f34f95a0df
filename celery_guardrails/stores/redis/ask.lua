-- Behind resource.lua, for scripts that let an execution in.
local PROBE_WAIT, FIRSTS_FIRST, ASK_AGAIN, ROUNDING = 1000, 2000, 500, 0.1
local function condition(s)
  return override(s) or (s[OPENED] == 0 and 'closed') or (s[SINCE] <= now and now < s[UNTIL] and 'open') or 'half-open'
end
local function breaker_wait(s, found, holder, first)
  if found == 'closed' then return 0 end
  if found == 'open' then
    if override(s) then return s[FORCED_UNTIL] - now end
    return s[UNTIL] - now
  end
  if s[PROBE] ~= '' and s[PROBE] ~= holder and now < s[PROBE_UNTIL] then return PROBE_WAIT end
  if first or now < s[SINCE] then return 0 end
  return math.max(0, s[UNTIL] + FIRSTS_FIRST - now)
end
-- Takes a token, or has a first attempt pay for it; false where there is none.
local function spend(s, first, ratio, floor, window, dearest)
  local size, cost = floor * window / 1000, tonumber(COST)
  fill(s, floor, window)
  if first then
    s[PAID] = math.max(s[PAID], math.min(now + window, s[PAID] + 1000 * ratio / floor))
    s[MISSING] = math.max(lapsed(s, floor, window, dearest), s[MISSING] - ratio)
  elseif s[MISSING] + math.min(cost, size) > size + 1e-4 then
    return false
  else
    s[MISSING] = s[MISSING] + cost
  end
  return true
end
-- Answers nil, or why not and for how many milliseconds.
local function enter(holder, first, lease)
  local slot = redis.call('ZSCORE', SLOTS, holder)
  if not slot or tonumber(slot) <= now then
    local breaks, _, _, _, _, _, _, budgeted, ratio, floor, window, dearest, most, per_ms, burst = struct.unpack(SETTINGS_FORM, SETTINGS)
    local s = load_state()
    local found = breaks == 1 and condition(s) or 'closed'
    local wait = breaker_wait(s, found, holder, first)
    if wait > 0 then return 'breaker', wait end
    if budgeted == 1 and not spend(s, first, ratio, floor, window, dearest) then return 'budget', ASK_AGAIN end
    if most > 0 and redis.call('ZCOUNT', SLOTS, '(' .. int(now), '+inf') >= most then return 'slots', ASK_AGAIN end
    if per_ms > 0 then
      local arrival = s[ARRIVAL]
      if arrival - now > 2 * burst / per_ms + 1000 then arrival = now end
      wait = arrival - (burst - 1) / per_ms - now
      if wait > ROUNDING then return 'rate', wait end
      s[ARRIVAL] = math.max(arrival, now) + 1 / per_ms
    end
    if found == 'half-open' then s[PROBE], s[PROBE_UNTIL] = holder, now + lease end
    s[ENTERED] = s[ENTERED] + 1
    save_state(s)
  end
  redis.call('ZADD', SLOTS, now + lease, holder)
  redis.call('ZREMRANGEBYSCORE', SLOTS, '-inf', now)
  redis.call('PEXPIRE', SLOTS, KEPT)
  return nil
end
