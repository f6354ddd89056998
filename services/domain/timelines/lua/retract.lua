-- Removes posts from timelines.

--!include keys.lua
--!arguments space, posts[], owners[]

for _, owner in ipairs(owners) do
    local key = key_of(space, owner)
    for _, post in ipairs(posts) do
        call('LREM', key, '1', post)
    end
end
