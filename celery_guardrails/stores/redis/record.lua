-- The record of a key is one string: a msgpack array, the most compact form that a script can read.
--   idle, leased: {state, fingerprint, fence, attempts, crashes, holder, until_ms, claimed_ms, owner}
--   completed:    {2, fingerprint, fence, completed_ms, task_id, content_type, content_encoding, data}
-- An empty string stands for None. Time is the server's own, never the caller's.
local IDLE, LEASED, COMPLETED = 0, 1, 2
local time = redis.call('TIME')
local now_us = time[1] * 1000000 + time[2]
local now = math.floor(now_us / 1000)
local function load(key)
  local raw = redis.call('GET', key)
  if raw then return cmsgpack.unpack(raw) end
  return nil
end
local function save(key, record, milliseconds)
  redis.call('SET', key, cmsgpack.pack(record), 'PX', milliseconds)
end
local function int(number) return string.format('%.0f', number) end
