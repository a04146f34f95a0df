-- KEYS: resource. ARGV: what resource.lua wants. Answers {now_ms, slots that are taken, the state...}.
local answer = {int(now), redis.call('ZCOUNT', SLOTS, '(' .. int(now), '+inf')}
for at, value in ipairs(load_state()) do
  if type(value) == 'number' then answer[at + 2] = string.format('%.6f', value) else answer[at + 2] = value end
end
return answer
