-- Returns the values of keys, in their order.

--!arguments keys[]

local values = {}
for index, key in ipairs(keys) do
    values[index] = redis.call('GET', key)
end
return values
