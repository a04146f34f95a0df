-- Behind resource.lua, for scripts with which an execution ends.
local JITTER = 0.25
local function add(s, at, amount, length)
  local passed = math.floor((now - s[at]) / length)
  if passed == 1 then
    s[at], s[at + 1], s[at + 2] = s[at] + length, 0, s[at + 1]
  elseif passed > 1 or passed < -1 then
    s[at], s[at + 1], s[at + 2] = now, 0, 0
  end
  s[at + 1] = s[at + 1] + amount
end
-- of buckets that have been added to now
local function count(s, at, length)
  return s[at + 1] + s[at + 2] * (1 - math.min(1, math.max(0, now - s[at]) / length))
end
local function told(s, effect, probing, failure_rate, min_calls, window, open_for, max_open, probes)
  local function open(times)
    s[OPENED], s[PASSED], s[SINCE] = times, 0, now
    s[UNTIL] = now + math.min(max_open, open_for * 2 ^ math.min(times - 1, 30)) * (1 + JITTER * tonumber(FRACTION))
  end
  if s[OPENED] ~= 0 then
    if not probing then return end
    if effect == 'failure' then
      open(s[OPENED] + 1)
    elseif s[PASSED] + 1 < probes then
      s[PASSED] = s[PASSED] + 1
    else
      for at = OPENED, FORCED_UNTIL do s[at] = 0 end
      for at = CALLS, CALLS + 5 do s[at] = 0 end
      s[SINCE], s[PROBE], s[FORCED] = now, '', ''
    end
    return
  end
  add(s, CALLS, 1, window)
  add(s, FAILURES, effect == 'failure' and 1 or 0, window)
  if effect ~= 'failure' then return end
  local calls = count(s, CALLS, window)
  if calls >= min_calls and count(s, FAILURES, window) >= failure_rate * calls then
    for at = CALLS, CALLS + 5 do s[at] = 0 end
    s[PROBE], s[PROBE_UNTIL], s[FORCED], s[FORCED_UNTIL] = '', 0, '', 0
    open(1)
  end
end
local function leave(holder)
  local slot = redis.call('ZSCORE', SLOTS, holder)
  if not slot then return end
  redis.call('ZREM', SLOTS, holder)
  local breaks, failure_rate, min_calls, span, open_for, max_open, probes, budgeted, _, floor, window, dearest =
    struct.unpack(SETTINGS_FORM, SETTINGS)
  local effect, cost = EFFECT, tonumber(COST)
  if tonumber(slot) <= now then effect = 'neutral' end
  local paid_back = budgeted == 1 and cost > 0 and effect == 'success'
  if breaks ~= 1 and not paid_back then return end
  local s = load_state()
  if paid_back then
    fill(s, floor, window)
    s[MISSING] = math.min(s[MISSING], math.max(lapsed(s, floor, window, dearest), s[MISSING] - cost))
  end
  local probing = breaks == 1 and holder ~= '' and s[PROBE] == holder
  if probing then s[PROBE], s[PROBE_UNTIL] = '', 0 end
  local began = tonumber(BEGAN)
  local late = not probing and began >= 0 and began < s[SINCE] and s[SINCE] <= now
  local silent = breaks ~= 1 or effect == 'neutral' or late or override(s)
  if not silent then told(s, effect, probing, failure_rate, min_calls, span, open_for, max_open, probes) end
  if paid_back or probing or not silent then save_state(s) end
end
