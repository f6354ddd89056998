-- Sets how long the cache serves S3's responses before it revalidates them, and forbids caching
-- errors and objects that are not images. Reports errors that a viewer cannot act on as 503.
--
-- gateway/edge.py prepends the definitions of FRESH_SECONDS and TYPES.

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
