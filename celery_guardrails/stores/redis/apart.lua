-- In the place of resource.lua, for tasks without a resource.
local function enter() return nil end
local function leave() end
