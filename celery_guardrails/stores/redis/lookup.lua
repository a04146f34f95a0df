-- KEYS: record. Answers the record's fields as strings, or an empty list.
local r = load(KEYS[1])
if not r then return {} end
local fields = {}
for index, value in ipairs(r) do
  if type(value) == 'number' then fields[index] = int(value) else fields[index] = value end
end
return fields
