-- KEYS: resource. ARGV: what resource.lua wants. Answers {now_ms, slots that are taken, the state...}.
local answer, s = {int(now), redis.call('ZCOUNT', SLOTS, '(' .. int(now), '+inf')}, load_state()
for at = OPENED, PAID do answer[at + 2] = string.format('%.6f', s[at]) end
answer[PROBE + 2], answer[FORCED + 2] = s[PROBE], s[FORCED]
return answer
