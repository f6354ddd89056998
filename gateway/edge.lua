-- Lets a request through to the cache when its path lies below the prefix that its token names,
-- and turns it into S3's path without a query: whoever may see a picture shares one cached answer.
-- Lets nothing but pictures out.

local MEDIA = "/media/"
local OWN = "photomesh.edge"

-- Whether one of the entity tags in an If-None-Match is this one; RFC 9110, section 13.1.2.
local function names(known, etag)
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

-- Answers a viewer who has the picture already. With a condition the cache would step aside and
-- leave each request to S3, so it is asked for the head alone, through our own front door.
local function answer_known(handle, path, known)
  local head = handle:httpCall(
    "self", { [":method"] = "HEAD", [":path"] = path, [":authority"] = "self" }, "", 5000
  )
  local etag = head[":status"] == "200" and head["etag"]
  if etag and names(known, etag) then
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
  -- The slash at its end keeps a prefix from covering its neighbours' names.
  local good = type(prefix) == "string"
    and prefix:sub(1, #MEDIA) == MEDIA and prefix:sub(-1) == "/"
    and path:sub(1, #prefix) == prefix
  if not good then
    handle:respond({ [":status"] = "403" }, "")
    return
  end
  -- No key ends so; a store that has folders would show one.
  if path:sub(-1) == "/" then
    handle:respond({ [":status"] = "404" }, "")
    return
  end
  metadata:set(OWN, "method", headers:get(":method"))
  local known = headers:get("if-none-match")
  if known and not headers:get("range") then
    if answer_known(handle, headers:get(":path"), known) then
      return
    end
    -- Asked for anew: waiting for the answer ended the object from above.
    headers = handle:headers()
  end
  headers:replace(":path", "/" .. bucket .. "/" .. path:sub(#MEDIA + 1))
  headers:replace(":authority", authority)
  headers:remove("if-none-match")
  headers:remove("if-modified-since")
  -- What a key holds never changes, so a part always belongs to what the viewer has of it.
  headers:remove("if-range")
end

local GOOD = { ["200"] = true, ["206"] = true }

-- What says something of the object, and nothing of the refusal that takes its place.
local OF_THE_OBJECT = {
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
    -- Envoy repeats the whole URL here, token included.
    headers:replace("www-authenticate", "Bearer")
  end
  local own = handle:streamInfo():dynamicMetadata():get(OWN)
  if not own then
    return
  end
  local status = headers:get(":status")
  if GOOD[status] then
    if context:get("types")[headers:get("content-type")] then
      -- The edge asks anew before long, in case the picture was deleted; whoever has it, has it.
      headers:replace("cache-control", context:get("cache_control"))
      return
    end
    status = "404"
    headers:replace(":status", status)
    for _, name in ipairs(OF_THE_OBJECT) do
      headers:remove(name)
    end
  elseif headers:get("content-type") == "application/json" then
    -- Envoy's own refusals are JSON already; others are S3's and the cache's.
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
  -- Piece by piece: what it takes the place of may be larger than fits in memory.
  local told = false
  for piece in handle:bodyChunks() do
    piece:setBytes(told and "" or answer)
    told = true
  end
  if not told then
    -- The answer came without a body.
    handle:body(true):setBytes(answer)
  end
end
