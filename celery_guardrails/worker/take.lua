-- Take the oldest message of the first list that has one, and put it among the unacknowledged in the same step.
-- KEYS: unacked_index (sorted set by time), unacked (hash), lists in their order. The time is the server's.
-- Answers {list, item, delivery tag or ''}: with the tag, what kombu would note in a round trip of its own is noted already.
-- An item that is no message of kombu's is handed over as it is: what reads it dead-letters it.
for i = 3, #KEYS do
  local item = redis.call('RPOP', KEYS[i])
  if item then
    local noted = ''
    local read, message = pcall(cjson.decode, item)
    local properties = read and type(message) == 'table' and message['properties']
    if type(properties) == 'table' then
      local tag, info = properties['delivery_tag'], properties['delivery_info']
      if type(tag) == 'string' and type(info) == 'table'
          and type(info['exchange']) == 'string' and type(info['routing_key']) == 'string' then
        -- the item itself and not its decoded form: Lua's numbers are doubles, and its empty tables are objects
        local entry = '[' .. item .. ',' .. cjson.encode(info['exchange']) .. ',' .. cjson.encode(info['routing_key']) .. ']'
        redis.call('HSET', KEYS[2], tag, entry)
        local time = redis.call('TIME')
        redis.call('ZADD', KEYS[1], time[1] + time[2] / 1000000, tag)
        noted = tag
      end
    end
    return {KEYS[i], item, noted}
  end
end
return false
