-- Checks that the path of a request is below the prefix that its token names, and rewrites it to
-- S3's path without a query, so that all viewers of an image share one cached response. Blocks
-- responses that are not images.

local MEDIA = "/media/"
local METADATA_NAMESPACE = "photomesh.edge"

-- Reports whether an If-None-Match value contains the entity tag; RFC 9110, section 13.1.2.
local function matches(known, etag)
  if known:match("^%s*%*%s*$") then
    return true
  end
  etag = etag:gsub("^W/", "")
  for tag in known:gmatch('"[^"]*"') do
    if tag == etag then
      return true
    end
  end
  return false
end

-- Responds 304 to a viewer that already has the image. A conditional request would bypass the cache
-- and reach S3 each time, so this sends a HEAD request to the edge itself instead.
local function respond_not_modified(handle, path, known)
  local head = handle:httpCall(
    "self", { [":method"] = "HEAD", [":path"] = path, [":authority"] = "self" }, "", 5000
  )
  local etag = head[":status"] == "200" and head["etag"]
  if etag and matches(known, etag) then
    handle:respond({
      [":status"] = "304",
      ["etag"] = etag,
      ["cache-control"] = handle:filterContext():get("cache_control"),
    }, "")
    return true
  end
end

function envoy_on_request(handle)
  local context = handle:filterContext()
  local bucket, authority = context:get("bucket"), context:get("authority")
  if not bucket then
    return
  end
  local headers = handle:headers()
  local path = headers:get(":path"):match("^[^?]*")
  local metadata = handle:streamInfo():dynamicMetadata()
  local claims = metadata:get("envoy.filters.http.jwt_authn")
  local prefix = claims and claims["token"] and claims["token"]["p"]
  -- The trailing slash keeps a prefix from matching longer names, such as "ab" for "a".
  local allowed = type(prefix) == "string"
    and prefix:sub(1, #MEDIA) == MEDIA and prefix:sub(-1) == "/"
    and path:sub(1, #prefix) == prefix
  if not allowed then
    handle:respond({ [":status"] = "403" }, "")
    return
  end
  -- No key ends with a slash; a store with folders would return a listing.
  if path:sub(-1) == "/" then
    handle:respond({ [":status"] = "404" }, "")
    return
  end
  metadata:set(METADATA_NAMESPACE, "method", headers:get(":method"))
  local known = headers:get("if-none-match")
  if known and not headers:get("range") then
    if respond_not_modified(handle, headers:get(":path"), known) then
      return
    end
    -- Fetched again: waiting for the response invalidated the earlier object.
    headers = handle:headers()
  end
  headers:replace(":path", "/" .. bucket .. "/" .. path:sub(#MEDIA + 1))
  headers:replace(":authority", authority)
  headers:remove("if-none-match")
  headers:remove("if-modified-since")
  -- The object of a key never changes, so a range always matches the viewer's copy.
  headers:remove("if-range")
end

local OK = { ["200"] = true, ["206"] = true }

-- Headers that describe the object, and must not appear in the error that replaces it.
local OBJECT_HEADERS = {
  "accept-ranges", "content-encoding", "content-language", "content-range", "etag", "expires",
  "last-modified", "location",
}

function envoy_on_response(handle)
  local context = handle:filterContext()
  local answers = context:get("answers")
  local headers = handle:headers()
  headers:replace("access-control-allow-origin", "*")
  headers:replace("x-content-type-options", "nosniff")
  headers:replace("content-security-policy", "default-src 'none'; sandbox")
  headers:remove("x-envoy-upstream-service-time")
  if headers:get("www-authenticate") then
    -- Envoy puts the whole URL here, including the token.
    headers:replace("www-authenticate", "Bearer")
  end
  local own = handle:streamInfo():dynamicMetadata():get(METADATA_NAMESPACE)
  if not own then
    return
  end
  local status = headers:get(":status")
  if OK[status] then
    if context:get("types")[headers:get("content-type")] then
      -- The edge itself revalidates soon, in case the image was deleted. Viewers keep their copy.
      headers:replace("cache-control", context:get("cache_control"))
      return
    end
    status = "404"
    headers:replace(":status", status)
    for _, name in ipairs(OBJECT_HEADERS) do
      headers:remove(name)
    end
  elseif headers:get("content-type") == "application/json" then
    -- Envoy's own errors are already JSON; all others come from S3 and the cache.
    return
  end
  local answer = answers[status]
  if not answer then
    return
  end
  headers:replace("cache-control", "no-store")
  headers:replace("content-type", "application/json")
  headers:remove("content-length")
  if own["method"] == "HEAD" then
    return
  end
  -- In chunks, because the replaced body can exceed memory.
  local replaced = false
  for piece in handle:bodyChunks() do
    piece:setBytes(replaced and "" or answer)
    replaced = true
  end
  if not replaced then
    -- The response has no body.
    handle:body(true):setBytes(answer)
  end
end
