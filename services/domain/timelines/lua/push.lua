-- Adds posts, newest first, to the timelines that exist; returns how many exist.
--
-- If `bound` is not empty, the posts are all posts of their author up to this member, and older
-- ones can exist. Then older members are removed, so that the timeline has no gap.

--!include keys.lua
--!include writing.lua
--!arguments space, bound, posts[], owners[]

local prefix = space .. ':{'
local post, is_one, reached = posts[1], bound == '' and #posts == 1, 0
for _, owner in ipairs(owners) do
    local key = prefix .. owner .. '}'
    local newest = call('LINDEX', key, '0')
    if not newest then
        -- There is no timeline to push into.
    elseif is_one then
        add_one(key, newest, post)
        reached = reached + 1
    elseif bound ~= '' and is_marker(oldest(key)) then
        call('UNLINK', key)
    else
        add(key, posts)
        if bound ~= '' then
            cut(key, bound)
        end
        reached = reached + 1
    end
end
return reached
