-- In the place of resource.lua and ask.lua or tell.lua, for tasks without a resource.
local function enter() return nil end
local function leave() end
