-- Creates a timeline that contains only a rebuild marker; returns 0 if the timeline exists.
--
-- Removes the rules of an earlier timeline that expired or was evicted.

--!include keys.lua
--!arguments space, marker, seconds, owner

local key = key_of(space, owner)
if call('EXISTS', key) == 1 then
    return 0
end
if space == FEED then
    call('UNLINK', key_of(RULES, owner))
end
call('RPUSH', key, marker)
call('EXPIRE', key, seconds)
return 1
