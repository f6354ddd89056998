-- Adds (`is_pulled` is 1) or removes (0) the pull rule of an author for all readers that do not
-- hide the author.
--
-- Abandons rebuilds in progress, because they may have read the previous rule.

--!include keys.lua
--!arguments author, is_pulled, owners[]

for _, reader in ipairs(owners) do
    local feed, rules = key_of(FEED, reader), key_of(RULES, reader)
    local last = oldest(feed)
    if last and is_marker(last) then
        call('UNLINK', feed)
    elseif last and call('EXISTS', rules) == 1 then
        if is_pulled == '1' then
            call('HSETNX', rules, author, 'p')
        elseif call('HGET', rules, author) == 'p' then
            call('HDEL', rules, author)
        end
    end
end
