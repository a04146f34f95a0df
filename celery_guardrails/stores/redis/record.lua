-- The record of a key is one string: a msgpack array, the most compact form that a script can read.
--   idle, leased: {state, fingerprint, fence, attempts, losses, holder, until_ms, claimed_ms, owner [, steps]}
--   completed:    {2, fingerprint, fence, completed_ms, task_id, content_type, content_encoding, data}
--   losses:       crashes, 1000 for each suspicion, 1000000 where others may run beside the holder (policy/suspicion.py)
--   steps:        {name = {content_type, content_encoding, data}, ...}, absent where there are none
-- An empty string stands for None. Time is the server's own, never the caller's.
local IDLE, LEASED, COMPLETED = 0, 1, 2
local SUSPICION, BESIDE = 1000, 1000000
local STEPS_MS = 2592000000 -- 30 days: celery_guardrails.stores.STEPS_SECONDS
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local function load(key)
  local raw = redis.call('GET', key)
  if raw then return cmsgpack.unpack(raw) end
  return nil
end
local function save(key, record, milliseconds)
  if record[10] and milliseconds < STEPS_MS then milliseconds = STEPS_MS end
  redis.call('SET', key, cmsgpack.pack(record), 'PX', milliseconds)
end
local function int(number) return string.format('%.0f', number) end
local function words(...) return table.concat({...}, ' ') end
-- every suspicion is a crash
local function proven(losses) return losses % SUSPICION + math.floor(losses / SUSPICION) end
-- flat: name, content type, content encoding, data, and so on
local function add_steps(answer, steps)
  for name, value in pairs(steps) do
    answer[#answer + 1] = name
    for index = 1, 3 do answer[#answer + 1] = value[index] end
  end
  return answer
end
