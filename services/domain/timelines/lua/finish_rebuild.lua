-- Replaces the rebuild marker with the members read from the database, newest first; returns 0 if
-- the result is outdated.
--
-- The result for a home timeline is outdated if an author was hidden after `version` was read from
-- graph. Posts that were pushed during the rebuild and are older than all of `members` are omitted:
-- there can be a gap before them.

--!include keys.lua
--!include writing.lua
--!arguments space, marker, seconds, version, hidden[], pulled[], members[], owner

local key, rules = key_of(space, owner), key_of(RULES, owner)
if call('LREM', key, '-1', marker) == 0 then
    return 0
end
if space == FEED then
    if tonumber(call('HGET', rules, 'v') or 0) > tonumber(version) then
        call('UNLINK', key, rules)
        return 0
    end
    call('HSET', rules, 'v', version, 's', version)
    for _, author in ipairs(hidden) do
        call('HSET', rules, author, 'h')
    end
    for _, author in ipairs(pulled) do
        call('HSET', rules, author, 'p')
    end
    call('EXPIRE', rules, seconds)
end
local pushed = all(key)
write(key, members[1] and merged(members, pushed) or pushed, seconds)
return 1
