-- Removes a timeline and its rules.

--!include keys.lua
--!arguments space, owner

call('UNLINK', key_of(space, owner))
if space == FEED then
    call('UNLINK', key_of(RULES, owner))
end
