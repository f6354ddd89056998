-- Removes a timeline whose rebuild failed, including posts pushed during the rebuild.

--!include keys.lua
--!arguments space, marker, owner

local key = key_of(space, owner)
if call('LREM', key, '-1', marker) == 1 then
    call('UNLINK', key)
end
