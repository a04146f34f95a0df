-- What celery_guardrails.policy.occupancy says, in Lua. A resource is two keys of one slot:
--   a string: {opened, until, since, passed, probe_until, forced_until, arrival, entered, calls x3, failures x3, missing, paid,
--              probe, forced} as doubles and zero-ended strings; a window is start, current, previous
--   a sorted set of its slots: holder by the end of its lease
-- The last seven of ARGV: name of the string, name of the set, effect, cost of a retry, fraction for the jitter,
-- time of the beginning or -1, settings.
-- Times are milliseconds, the server's own. struct takes a tenth of the time that cmsgpack takes for so many numbers.
local STATE, SLOTS, EFFECT, COST, FRACTION, BEGAN, SETTINGS = unpack(ARGV, #ARGV - 6)
local OPENED, UNTIL, SINCE, PASSED, PROBE_UNTIL, FORCED_UNTIL, ARRIVAL, ENTERED = 1, 2, 3, 4, 5, 6, 7, 8
local CALLS, FAILURES, MISSING, PAID, PROBE, FORCED = 9, 12, 15, 16, 17, 18
local FORM, SETTINGS_FORM = '>ddddddddddddddddss', '>ddddddddddddddd'
local KEPT = 864000000 -- ten days, and as long as an operator's word lasts
local function load_state()
  local raw = redis.call('GET', STATE)
  if raw then return {struct.unpack(FORM, raw)} end
  return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, '', ''}
end
local function save_state(s)
  redis.call('SET', STATE, struct.pack(FORM, unpack(s, 1, FORCED)), 'PX', KEPT + math.max(0, math.ceil(s[FORCED_UNTIL] - now)))
end
local function override(s)
  if s[FORCED] ~= '' and now < s[FORCED_UNTIL] then return s[FORCED] end
  return nil
end
-- the bucket of the retry budget, as it stands now
local function fill(s, floor, window)
  if s[PAID] - now > window + 1000 then
    s[PAID] = now
  elseif s[PAID] < now then
    s[MISSING], s[PAID] = math.max(0, s[MISSING] - floor * (now - s[PAID]) / 1000), now
  end
end
local function lapsed(s, floor, window, dearest)
  return math.min(floor * math.max(0, s[PAID] - now) / 1000, math.max(0, floor * window / 1000 - dearest))
end
