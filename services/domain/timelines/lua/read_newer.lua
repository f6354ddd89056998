-- Returns for each reader: the id, the home timeline's last member (empty: no timeline), the posts
-- newer than `bound`, the rules.

--!include keys.lua
--!include reading.lua
--!arguments bound, owners[]

local slices = {}
for _, reader in ipairs(owners) do
    local feed = key_of(FEED, reader)
    local last = oldest(feed)
    local members, rules = {}, {}
    if last and not is_marker(last) then
        rules = call('HGETALL', key_of(RULES, reader))
        if rules[1] then
            members = newer(feed, bound)
        else
            last = nil
        end
    end
    slices[#slices + 1] = {reader, last or '', members, rules}
end
return slices
