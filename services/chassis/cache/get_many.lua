-- Returns the values of keys, in the order of the keys.

--!arguments keys[]

local values = {}
for index, key in ipairs(keys) do
    values[index] = redis.call('GET', key)
end
return values
