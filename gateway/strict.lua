-- Rejects invalid requests that the transcoder accepts: unknown fields (it drops them), duplicate
-- fields (it merges them), invalid JSON (it is lenient), invalid UTF-8 (services cannot parse it),
-- and bodies of methods that take none (it reads fields from them). Adds the name of the invalid
-- field to responses about malformed requests.

-- The limits of one body: nesting levels and values.
local MAX_DEPTH = 64

-- Parsing this many values takes about a millisecond.
local MAX_VALUES = 4096

-- The maximum length of a field name, and of a message that quotes the request.
local MAX_NAME_BYTES = 128
local MAX_MESSAGE_BYTES = 1024

local UNREADABLE = "The request cannot be read."

-- Set on Envoy's responses to malformed requests; see gateway/errors.py.
local MALFORMED_MARK = "x-photomesh-malformed"

local read_value

-- The number of values parsed in the current body.
local values = 0

local function refuse(message)
  error({ message = message }, 0)
end

local function skip_space(text, at)
  return text:find("[^ \t\r\n]", at) or #text + 1
end

local function not_json(text, at)
  if at > #text then
    refuse("The body is not valid JSON: it ends too early.")
  end
  refuse("The body is not valid JSON: byte " .. at .. " is unexpected.")
end

-- Returns the raw text between the quotes, and the position after the closing quote.
local function read_string(text, at)
  if text:sub(at, at) ~= '"' then
    not_json(text, at)
  end
  local stop = at
  repeat
    stop = text:find('["\\%c]', stop + 1)
    if not stop then
      not_json(text, #text + 1)
    end
    local found = text:sub(stop, stop)
    if found == "\\" then
      stop = stop + 1
    elseif found ~= '"' then
      not_json(text, stop)
    end
  until found == '"'
  return text:sub(at + 1, stop - 1), stop + 1
end

local function read_scalar(text, at)
  local word = text:match("^[%w.+-]+", at)
  if word and (word == "true" or word == "false" or word == "null" or
               (word:find("^-?%d") and tonumber(word))) then
    return at + #word
  end
  not_json(text, at)
end

-- Parses the items between an opening bracket and `close`; `read_item` parses one item.
local function read_items(text, at, close, read_item)
  at = skip_space(text, at + 1)
  if text:sub(at, at) == close then
    return at + 1
  end
  while true do
    at = skip_space(text, read_item(skip_space(text, at)))
    local separator = text:sub(at, at)
    if separator == close then
      return at + 1
    elseif separator ~= "," then
      not_json(text, at)
    end
    at = at + 1
  end
end

local function join(path, name)
  return path == "" and name or path .. "." .. name
end

-- Returns the position after the value at `at`. `field` describes the value: a table with
-- `proto_name` and `repeated`, and, for messages, `name` and `fields`; or `true` if not described.
function read_value(text, at, field, path, depth)
  if depth > MAX_DEPTH then
    refuse("The body is nested deeper than " .. MAX_DEPTH .. " levels.")
  end
  values = values + 1
  if values > MAX_VALUES then
    refuse("The body has more than " .. MAX_VALUES .. " values.")
  end
  local known = type(field) == "table"
  local first = text:sub(at, at)
  if known and field.repeated and first ~= "[" and not text:find("^null", at) then
    refuse(path .. ": must be a list")
  end
  if first == "{" then
    if known and not field.fields then
      refuse(path .. ": must not be an object")
    end
    local seen = {}
    return read_items(text, at, "}", function(start)
      local name, stop = read_string(text, start)
      if #name > MAX_NAME_BYTES then
        refuse("The body has a field whose name is longer than " .. MAX_NAME_BYTES .. " bytes.")
      end
      local inner_path = join(path, name)
      local inner = true
      if known then
        inner = field.fields[name]
        if inner == nil then
          refuse('Could not find field "' .. inner_path .. '" in the type "' .. field.name .. '".')
        end
        if inner ~= true then
          inner_path = join(path, inner.proto_name)
        end
      end
      -- Both names of a field map to the same path.
      if seen[inner_path] then
        refuse(inner_path .. ": must appear only once")
      end
      seen[inner_path] = true
      stop = skip_space(text, stop)
      if text:sub(stop, stop) ~= ":" then
        not_json(text, stop)
      end
      return read_value(text, skip_space(text, stop + 1), inner, inner_path, depth + 1)
    end)
  elseif first == "[" then
    if known and not field.repeated then
      refuse(path .. ": must not be a list")
    end
    local item = known and { name = field.name, fields = field.fields } or field
    local count = -1
    return read_items(text, at, "]", function(start)
      count = count + 1
      return read_value(text, start, item, path .. "[" .. count .. "]", depth + 1)
    end)
  end
  if known and field.fields and not text:find("^null", at) then
    refuse(path .. ": must be an object")
  end
  if first == '"' then
    local _, stop = read_string(text, at)
    return stop
  end
  return read_scalar(text, at)
end

local function check_body(text, message)
  values = 0
  local start = skip_space(text, 1)
  if text:sub(start, start) ~= "{" then
    refuse("The body must be a JSON object.")
  end
  local stop = skip_space(text, read_value(text, start, message, "", 1))
  if stop <= #text then
    not_json(text, stop)
  end
end

-- The multi-byte sequences of UTF-8; RFC 3629, section 4.
local UTF8 = {
  "^[\194-\223][\128-\191]",
  "^\224[\160-\191][\128-\191]",
  "^[\225-\236\238\239][\128-\191][\128-\191]",
  "^\237[\128-\159][\128-\191]",
  "^\240[\144-\191][\128-\191][\128-\191]",
  "^[\241-\243][\128-\191][\128-\191][\128-\191]",
  "^\244[\128-\143][\128-\191][\128-\191]",
}

local function check_utf8(text, what)
  local at = text:find("[\128-\255]")
  while at do
    local stop
    for _, sequence in ipairs(UTF8) do
      _, stop = text:find(sequence, at)
      if stop then
        break
      end
    end
    if not stop then
      refuse(what .. " is not valid UTF-8.")
    end
    at = text:find("[\128-\255]", stop + 1)
  end
end

local function check_path(path)
  local plain = path:gsub("%%(%x%x)", function(digits)
    return string.char(tonumber(digits, 16))
  end)
  check_utf8(plain, "The path")
end

local function answer(handle, refusal)
  local text = type(refusal) == "table" and refusal.message or UNREADABLE
  handle:respond({ [":status"] = "400" }, text)
end

function envoy_on_request(handle)
  local context = handle:filterContext()
  local message = context and context:get("message")
  if not message then
    return
  end
  local good, refusal = pcall(check_path, handle:headers():get(":path"))
  if not good then
    return answer(handle, refusal)
  end
  if context:get("takes_file") then
    return
  end
  local body = handle:body()
  if not body or body:length() == 0 then
    return
  end
  if not message.fields then
    return answer(handle, { message = "The method takes no body; send the request without one." })
  end
  local text = body:getBytes(0, body:length())
  good, refusal = pcall(check_utf8, text, "The body")
  if good then
    good, refusal = pcall(check_body, text, message)
  end
  if not good then
    return answer(handle, refusal)
  end
end

-- Patterns that find the field name in error messages, as escaped in JSON.
local FIELD_PATTERNS = {
  '^Could not find field \\"(.-)\\" in the type ',
  "^([%w_.%[%]]+): ",
}

function envoy_on_response(handle)
  local headers = handle:headers()
  if not headers:get(MALFORMED_MARK) then
    return
  end
  headers:remove(MALFORMED_MARK)
  local body = handle:body()
  if not body then
    return
  end
  -- Removes the list index that Envoy reports: it is not the index of the item.
  local text = body:getBytes(0, body:length())
    :gsub('("message":"[%w_.]+)%[%d+%](: invalid value )', "%1%2", 1)
  local message = text:match('"message":"(.*)"')
  if not message then
    return
  end
  local shown = #message <= MAX_MESSAGE_BYTES and message or UNREADABLE
  -- Functions, because % is special in a replacement string.
  text = text:gsub('"message":".*"', function() return '"message":"' .. shown .. '"' end, 1)
  for _, pattern in ipairs(FIELD_PATTERNS) do
    local field = message:match(pattern)
    if field and #field <= MAX_NAME_BYTES then
      local violation = '{"@type":"type.googleapis.com/google.rpc.BadRequest",' ..
        '"fieldViolations":[{"field":"' .. field .. '","description":"' .. shown .. '"}]}'
      text = text:gsub("}%]", function() return "}," .. violation .. "]" end, 1)
      break
    end
  end
  -- Fetched again: waiting for the body invalidated the earlier object.
  handle:headers():replace("content-length", body:setBytes(text))
end
