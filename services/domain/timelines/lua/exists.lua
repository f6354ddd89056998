-- Returns 1 if the timeline exists.

--!include keys.lua
--!arguments space, owner

return call('EXISTS', key_of(space, owner))
