-- Returns for each author: the id, the timeline's last member (empty: no timeline), a slice.
--
-- Renews TTLs to `seconds`, except during rebuilds.

--!include keys.lua
--!include reading.lua
--!arguments cursor, count, seconds, owners[]

local slices = {}
for _, author in ipairs(owners) do
    local key = key_of(AUTHOR, author)
    local last = oldest(key)
    local members = {}
    if last and not is_marker(last) then
        renew(key, seconds)
        members = slice(key, cursor, count)
    end
    slices[#slices + 1] = {author, last or '', members}
end
return slices
