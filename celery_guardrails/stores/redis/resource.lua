-- What celery_guardrails.policy.occupancy says, in Lua. A resource is two keys of one slot:
--   a string, a msgpack array: {opened, until, since, passed, probe, probe_until, forced, forced_until, arrival,
--                               calls x3, failures x3, missing, paid, entered}; a window is start, current, previous
--   a sorted set of its slots: holder by the end of its lease
-- The last six of ARGV: name of the string, name of the set, effect, cost of a retry, fraction for the jitter, settings.
-- Times are milliseconds, the server's own.
local STATE, SLOTS, EFFECT = ARGV[#ARGV - 5], ARGV[#ARGV - 4], ARGV[#ARGV - 3]
local COST, FRACTION = tonumber(ARGV[#ARGV - 2]), tonumber(ARGV[#ARGV - 1])
local OPENED, UNTIL, SINCE, PASSED, PROBE, PROBE_UNTIL, FORCED, FORCED_UNTIL, ARRIVAL = 1, 2, 3, 4, 5, 6, 7, 8, 9
local CALLS, FAILURES, MISSING, PAID, ENTERED = 10, 13, 16, 17, 18
local PROBE_WAIT, FIRSTS_FIRST, ASK_AGAIN, JITTER, ROUNDING = 1000, 2000, 500, 0.25, 0.1
local KEPT = 864000000 -- ten days, and as long as an operator's word lasts
local numbers = {}
for word in string.gmatch(ARGV[#ARGV], '%S+') do numbers[#numbers + 1] = tonumber(word) end
local breaks, failure_rate, min_calls, breaker_window, open_for, max_open, probes = unpack(numbers, 1, 7)
local budgeted, ratio, floor, budget_window, dearest, most, per_ms, burst = unpack(numbers, 8, 15)
local function load_state()
  local raw = redis.call('GET', STATE)
  if raw then return cmsgpack.unpack(raw) end
  return {0, 0, 0, 0, '', 0, '', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}
end
local function save_state(s)
  redis.call('SET', STATE, cmsgpack.pack(s), 'PX', KEPT + math.max(0, math.ceil(s[FORCED_UNTIL] - now)))
end
local function roll(s, at, length)
  local passed = math.floor((now - s[at]) / length)
  if passed == 1 then
    s[at], s[at + 1], s[at + 2] = s[at] + length, 0, s[at + 1]
  elseif passed > 1 or passed < -1 then
    s[at], s[at + 1], s[at + 2] = now, 0, 0
  end
end
-- to count moves no bucket: where buckets begin depends on when they are moved
local function count(s, at, length)
  local start, current, previous = s[at], s[at + 1], s[at + 2]
  local passed = math.floor((now - start) / length)
  if passed > 1 then return 0 end
  if passed == 1 then start, current, previous = start + length, 0, current end
  return current + previous * (1 - math.min(1, math.max(0, now - start) / length))
end
local function add(s, at, amount, length)
  roll(s, at, length)
  s[at + 1] = s[at + 1] + amount
end
local function fill(s)
  if s[PAID] - now > budget_window + 1000 then
    s[PAID] = now
  elseif s[PAID] < now then
    s[MISSING], s[PAID] = math.max(0, s[MISSING] - floor * (now - s[PAID]) / 1000), now
  end
end
local size = floor * budget_window / 1000
local function lapsed(s) return math.min(floor * math.max(0, s[PAID] - now) / 1000, math.max(0, size - dearest)) end
local function override(s)
  if s[FORCED] ~= '' and now < s[FORCED_UNTIL] then return s[FORCED] end
  return nil
end
local function condition(s)
  return override(s) or (s[OPENED] == 0 and 'closed') or (s[SINCE] <= now and now < s[UNTIL] and 'open') or 'half-open'
end
local function breaker_wait(s, holder, first)
  local found = condition(s)
  if found == 'closed' then return 0 end
  if found == 'open' then
    if override(s) then return s[FORCED_UNTIL] - now end
    return s[UNTIL] - now
  end
  if s[PROBE] ~= '' and s[PROBE] ~= holder and now < s[PROBE_UNTIL] then return PROBE_WAIT end
  if first or now < s[SINCE] then return 0 end
  return math.max(0, s[UNTIL] + FIRSTS_FIRST - now)
end
local function open(s, times)
  s[OPENED], s[PASSED], s[SINCE] = times, 0, now
  s[UNTIL] = now + math.min(max_open, open_for * 2 ^ math.min(times - 1, 30)) * (1 + JITTER * FRACTION)
end
-- Answers nil, or why not and for how many milliseconds.
local function enter(holder, first, lease)
  local s = load_state()
  local slot = redis.call('ZSCORE', SLOTS, holder)
  if not slot or tonumber(slot) <= now then
    if breaks == 1 then
      local wait = breaker_wait(s, holder, first)
      if wait > 0 then return 'breaker', wait end
    end
    if budgeted == 1 then
      fill(s)
      if first then
        s[PAID] = math.max(s[PAID], math.min(now + budget_window, s[PAID] + 1000 * ratio / floor))
        s[MISSING] = math.max(lapsed(s), s[MISSING] - ratio)
      elseif s[MISSING] + math.min(COST, size) > size + 1e-4 then
        return 'budget', ASK_AGAIN
      else
        s[MISSING] = s[MISSING] + COST
      end
    end
    if most > 0 and redis.call('ZCOUNT', SLOTS, '(' .. int(now), '+inf') >= most then return 'slots', ASK_AGAIN end
    if per_ms > 0 then
      local arrival = s[ARRIVAL]
      if arrival - now > 2 * burst / per_ms + 1000 then arrival = now end
      local wait = arrival - (burst - 1) / per_ms - now
      if wait > ROUNDING then return 'rate', wait end
      s[ARRIVAL] = math.max(arrival, now) + 1 / per_ms
    end
    if breaks == 1 and condition(s) == 'half-open' then s[PROBE], s[PROBE_UNTIL] = holder, now + lease end
    s[ENTERED] = s[ENTERED] + 1
    save_state(s)
  end
  redis.call('ZADD', SLOTS, now + lease, holder)
  redis.call('ZREMRANGEBYSCORE', SLOTS, '-inf', now)
  redis.call('PEXPIRE', SLOTS, KEPT)
  return nil
end
local function told(s, effect, probing)
  if s[OPENED] ~= 0 then
    if not probing then return end
    if effect == 'failure' then
      open(s, s[OPENED] + 1)
    elseif s[PASSED] + 1 < probes then
      s[PASSED] = s[PASSED] + 1
    else
      for at = 1, ARRIVAL - 1 do s[at] = 0 end
      for at = CALLS, CALLS + 5 do s[at] = 0 end
      s[SINCE], s[PROBE], s[FORCED] = now, '', ''
    end
    return
  end
  add(s, CALLS, 1, breaker_window)
  add(s, FAILURES, effect == 'failure' and 1 or 0, breaker_window)
  if effect ~= 'failure' then return end
  local calls = count(s, CALLS, breaker_window)
  if calls >= min_calls and count(s, FAILURES, breaker_window) >= failure_rate * calls then
    for at = CALLS, CALLS + 5 do s[at] = 0 end
    s[FORCED], s[FORCED_UNTIL] = '', 0
    open(s, 1)
  end
end
local function leave(holder)
  local slot = redis.call('ZSCORE', SLOTS, holder)
  if not slot then return end
  redis.call('ZREM', SLOTS, holder)
  local effect, s = EFFECT, load_state()
  if tonumber(slot) <= now then effect = 'neutral' end
  local paid_back = budgeted == 1 and COST > 0 and effect == 'success'
  if paid_back then
    fill(s)
    s[MISSING] = math.min(s[MISSING], math.max(lapsed(s), s[MISSING] - COST))
  end
  local probing = holder ~= '' and s[PROBE] == holder
  if probing then s[PROBE], s[PROBE_UNTIL] = '', 0 end
  local silent = breaks ~= 1 or effect == 'neutral' or override(s)
  if not silent then told(s, effect, probing) end
  if paid_back or probing or not silent then save_state(s) end
end
