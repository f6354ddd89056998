-- Shared by the scripts that add members to timelines.

-- Merges two lists without duplicates. Omits members of `added` that are older than all of `held`:
-- there can be a gap before them.
local function merged(held, added)
    local members, following = {}, 1
    for _, member in ipairs(held) do
        while added[following] and added[following] <= member do
            if added[following] < member then
                members[#members + 1] = added[following]
            end
            following = following + 1
        end
        members[#members + 1] = member
    end
    return members
end

local function write(key, members, seconds)
    call('UNLINK', key)
    if members[1] then
        call('RPUSH', key, unpack(members, 1, math.min(#members, MAX_LENGTH)))
        call('EXPIRE', key, seconds)
    end
end

-- Adds members at any position. Abandons a rebuild that would need trimming, because the trimmed
-- members would be missing from its result.
local function add(key, added)
    local held = all(key)
    local members = merged(held, added)
    if #members == #held then
        return
    end
    if #members > MAX_LENGTH and is_marker(members[#members]) then
        call('UNLINK', key)
    else
        write(key, members, math.max(call('TTL', key), 1))
    end
end

local function trim(key, length)
    if length > MAX_LENGTH then
        if is_marker(oldest(key)) then
            call('UNLINK', key)
        else
            call('LTRIM', key, '0', CAP - 1)
        end
    end
end

-- Adds one member. Checks the head first, because nearly all members belong there.
local function add_one(key, newest, member)
    if member < newest then
        trim(key, call('LPUSH', key, member))
    elseif member > newest then
        for _, each in ipairs(call('LRANGE', key, '1', '4')) do
            if each == member then
                return
            elseif each > member then
                trim(key, call('LINSERT', key, 'BEFORE', each, member))
                return
            end
        end
        add(key, {member})
    end
end

-- Removes all members older than `bound`.
local function cut(key, bound)
    local kept = 0
    for _, member in ipairs(all(key)) do
        if member <= bound then
            kept = kept + 1
        end
    end
    if kept == 0 then
        call('UNLINK', key)
    else
        call('LTRIM', key, '0', kept - 1)
    end
end
