-- Lets a request through to the cache when its path lies below the prefix that its token names,
-- and turns it into S3's path without a query: whoever may see a picture shares one cached answer.

local MEDIA = "/media/"

function envoy_on_request(handle)
  local context = handle:filterContext()
  local bucket = context:get("bucket")
  if not bucket then
    return
  end
  local headers = handle:headers()
  local path = headers:get(":path"):match("^[^?]*")
  local claims = handle:streamInfo():dynamicMetadata():get("envoy.filters.http.jwt_authn")
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
  headers:replace(":path", "/" .. bucket .. "/" .. path:sub(#MEDIA + 1))
  headers:replace(":authority", context:get("authority"))
end

function envoy_on_response(handle)
  local answers = handle:filterContext():get("answers")
  local headers = handle:headers()
  headers:replace("access-control-allow-origin", "*")
  headers:replace("x-content-type-options", "nosniff")
  headers:remove("x-envoy-upstream-service-time")
  if headers:get("www-authenticate") then
    -- Envoy repeats the whole URL here, token included.
    headers:replace("www-authenticate", "Bearer")
  end
  -- Envoy's own refusals are JSON already; these are S3's.
  local answer = answers and answers[headers:get(":status")]
  if not answer or headers:get("content-type") == "application/json" then
    return
  end
  headers:replace("cache-control", "no-store")
  headers:replace("content-type", "application/json")
  -- There is none where only the head was asked for.
  local body = handle:body()
  if body then
    handle:headers():replace("content-length", body:setBytes(answer))
  else
    handle:headers():remove("content-length")
  end
end
