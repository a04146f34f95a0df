local function fields(record)
  local found = {}
  for index = 1, math.min(#record, 9) do
    local value = record[index]
    if type(value) == 'number' then found[index] = int(value) else found[index] = value end
  end
  return add_steps(found, record[10] or {})
end
