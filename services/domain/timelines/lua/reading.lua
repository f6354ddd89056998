-- Shared by the scripts that read timelines.

-- Returns up to `count` posts that follow the member `cursor`; if it is empty, the newest posts.
local function slice(key, cursor, count)
    local first = 0
    if cursor ~= '' then
        first = call('LPOS', key, cursor)
        if first then
            first = first + 1
        else
            local members = all(key)
            first = #members
            while first > 0 and members[first] > cursor do
                first = first - 1
            end
        end
    end
    local members = call('LRANGE', key, first, first + count - 1)
    if members[1] and string.byte(members[#members]) > LARGEST_DIGIT then
        members[#members] = nil
    end
    return members
end

-- Returns the posts newer than the member `bound`.
local function newer(key, bound)
    local members = {}
    for first = 0, MAX_LENGTH, 32 do
        for _, member in ipairs(call('LRANGE', key, first, first + 31)) do
            if member >= bound then
                return members
            end
            members[#members + 1] = member
        end
    end
    return members
end

-- Renews a timeline's TTL, but only if at least a thirtieth of it has passed, so that most reads do
-- not write.
local function renew(key, seconds)
    if call('TTL', key) < seconds * 29 / 30 then
        return call('EXPIRE', key, seconds)
    end
end
