-- Adds posts, newest first, to the timelines that exist; returns how many do.
--
-- If `bound` is not empty, the posts are all of their author's posts from this member on, and the
-- author has older ones. Then the timeline must end at the bound.

--!include keys.lua
--!include writing.lua
--!arguments space, bound, posts[], owners[]

local prefix = space .. ':{'
local post, is_one, reached = posts[1], bound == '' and #posts == 1, 0
for _, owner in ipairs(owners) do
    local key = prefix .. owner .. '}'
    local newest = call('LINDEX', key, '0')
    if not newest then
        -- No timeline, so nothing to push into.
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
