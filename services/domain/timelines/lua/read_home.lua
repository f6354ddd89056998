-- Returns a home timeline's last member (empty: there is no timeline), a slice, and its rules.
--
-- Renews the TTL to `seconds`, except during a rebuild, because that TTL is the rebuild's timeout.

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
