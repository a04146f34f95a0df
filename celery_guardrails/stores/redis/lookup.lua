-- KEYS: record. Answers the record's fields as strings, steps flat at the end, or an empty list.
local r = load(KEYS[1])
if not r then return {} end
return fields(r)
