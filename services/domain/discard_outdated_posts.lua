-- Removes copies of older versions. Keeps tombstones and markers, which have no version.

--!arguments space, version, owners[]

for _, post in ipairs(owners) do
    local key = space .. ':{' .. post .. '}'
    local first = redis.call('GETRANGE', key, '0', '0')
    if first ~= '' and string.byte(first) < tonumber(version) then
        redis.call('UNLINK', key)
    end
end
