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
  headers:replace(":path", "/" .. bucket .. "/" .. path:sub(#MEDIA + 1))
  headers:replace(":authority", context:get("authority"))
end

function envoy_on_response(handle)
  local context = handle:filterContext()
  local answers = context:get("answers")
  local headers = handle:headers()
  headers:replace("access-control-allow-origin", "*")
  headers:replace("x-content-type-options", "nosniff")
  -- Envoy's own refusals are JSON already; these are S3's.
  local answer = answers and answers[headers:get(":status")]
  if not answer or headers:get("content-type") == "application/json" then
    return
  end
  headers:replace("content-type", "application/json")
  headers:remove("etag")
  headers:remove("last-modified")
  local body = handle:body()
  if body then
    handle:headers():replace("content-length", body:setBytes(answer))
  end
end
