-- Returns three values for each owner: the id, the timeline's newest member, its length.

--!include keys.lua
--!arguments space, owners[]

local values = {}
for index, owner in ipairs(owners) do
    local key = key_of(space, owner)
    local at = 3 * index - 2
    values[at] = owner
    values[at + 1] = call('LINDEX', key, '0') or ''
    values[at + 2] = call('LLEN', key)
end
return values
