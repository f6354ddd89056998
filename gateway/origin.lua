-- Says how long S3's answers may be kept before the cache asks S3 whether they are still there, and
-- that refusals and what is no picture may not be kept at all. What a viewer can do nothing about is
-- told as 503.
--
-- FRESH_SECONDS and TYPES stand before this text; see gateway/edge.py.

local GOOD = { ["200"] = true, ["206"] = true }
local PASSED = { ["404"] = true, ["416"] = true }

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  local picture = GOOD[status] and TYPES[headers:get("content-type")]
  if picture or status == "304" then
    headers:replace("cache-control", "public, max-age=" .. FRESH_SECONDS)
    return
  end
  headers:replace("cache-control", "no-store")
  if not GOOD[status] and not PASSED[status] then
    headers:replace(":status", "503")
  end
end
