-- Hides an author from a reader; returns 0 if `version` is outdated.
--
-- If there is no timeline, does nothing: a rebuild reads the current relations. During a rebuild,
-- stores only the version, for `seconds`, so that an outdated result is rejected.

--!include keys.lua
--!arguments author, version, seconds, owner

local feed, rules = key_of(FEED, owner), key_of(RULES, owner)
local last = oldest(feed)
if not last then
    return 1
end
local newest_version = math.max(tonumber(call('HGET', rules, 'v') or 0), tonumber(version))
if is_marker(last) then
    call('HSET', rules, 'v', newest_version)
    call('EXPIRE', rules, seconds)
    return 1
end
local shown = tonumber(call('HGET', rules, 's') or -1)
if shown < 0 then
    call('UNLINK', feed)
    return 1
end
if shown > tonumber(version) then
    return 0
end
call('HSET', rules, author, 'h', 'v', newest_version)
return 1
