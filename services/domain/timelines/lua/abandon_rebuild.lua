-- Removes a timeline whose rebuild failed, with what was pushed into it meanwhile.

--!include keys.lua
--!arguments space, marker, owner

local key = key_of(space, owner)
if call('LREM', key, '-1', marker) == 1 then
    call('UNLINK', key)
end
