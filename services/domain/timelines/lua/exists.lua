-- Returns 1 if there is a timeline.

--!include keys.lua
--!arguments space, owner

return call('EXISTS', key_of(space, owner))
