-- Sets the rule of an author that is shown: `p`, or empty for no rule. Returns 0 if `version` is
-- outdated.
--
-- Abandons a rebuild in progress, because it may have read older relations.

--!include keys.lua
--!arguments author, version, rule, owner

local feed, rules = key_of(FEED, owner), key_of(RULES, owner)
local last = oldest(feed)
if not last then
    return 1
end
local hidden = tonumber(call('HGET', rules, 'v') or -1)
if is_marker(last) or hidden < 0 then
    call('UNLINK', feed)
    return 1
end
if hidden > tonumber(version) then
    return 0
end
local shown = tonumber(call('HGET', rules, 's') or 0)
call('HSET', rules, 's', math.max(shown, tonumber(version)))
if rule == '' then
    call('HDEL', rules, author)
else
    call('HSET', rules, author, rule)
end
return 1
