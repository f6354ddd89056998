-- Returns a home timeline's last member (empty: no timeline), a slice of its posts and its rules.
--
-- Extends the TTL to `seconds`, except during a rebuild, whose TTL limits the rebuilder's time.

--!include keys.lua
--!include reading.lua
--!arguments cursor, count, seconds, owner

local feed, rules = key_of(FEED, owner), key_of(RULES, owner)
local last = oldest(feed)
if not last or is_marker(last) then
    return {last or '', {}, {}}
end
local found = call('HGETALL', rules)
if not found[1] then
    call('UNLINK', feed)
    return {'', {}, {}}
end
if renew(feed, seconds) then
    call('EXPIRE', rules, seconds)
end
return {last, slice(feed, cursor, count), found}
