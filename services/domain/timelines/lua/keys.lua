-- Shared by all scripts. Numbers in calls are strings where possible, because the server does not
-- have to convert strings.

local call = redis.call

-- Returns the key of an account in a key space, such as feed1:{17}.
local function key_of(space, id)
    return space .. ':{' .. id .. '}'
end

-- Returns the last member of a timeline; false if there is no timeline.
local function oldest(key)
    return call('LINDEX', key, '-1')
end

-- Reports whether a timeline's last member is a rebuild marker.
local function is_marker(member)
    return string.byte(member) == MARKER_BYTE
end

local function all(key)
    return call('LRANGE', key, '0', '-1')
end
