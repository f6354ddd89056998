-- Sets how long the cache serves S3's responses before it revalidates them, and forbids caching
-- errors and objects that are not images. Returns 503 for errors that a viewer cannot act on.
--
-- gateway/edge.py prepends the definitions of FRESH_SECONDS and TYPES.

local OK = { ["200"] = true, ["206"] = true }
local FORWARDED_ERRORS = { ["404"] = true, ["416"] = true }

function envoy_on_response(handle)
  local headers = handle:headers()
  local status = headers:get(":status")
  local is_image = OK[status] and TYPES[headers:get("content-type")]
  if is_image or status == "304" then
    headers:replace("cache-control", "public, max-age=" .. FRESH_SECONDS)
    return
  end
  headers:replace("cache-control", "no-store")
  if not OK[status] and not FORWARDED_ERRORS[status] then
    headers:replace(":status", "503")
  end
end
