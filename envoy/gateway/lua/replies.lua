-- Finishes responses after every other filter.
--
-- Errors that Envoy created arrive here as JSON, marked by headers that errors.py adds. REST
-- clients get that JSON with details of the single response: the invalid field, the retry delay.
-- gRPC and gRPC-Web clients get status, message and details. An unknown path that exists with
-- other HTTP methods becomes 405 with Allow.
-- Other REST responses lose the gRPC headers and get their success status, Location and ETag. An
-- error that gRPC's runtime created gets the reason of its code; RetryInfo also becomes Retry-After.

local CODE = "x-boxoffice-code"
local MESSAGE = "x-boxoffice-message"
local STATUS = "x-boxoffice-status"
local REQUEST = "x-boxoffice-request"
local REASON = "x-boxoffice-reason"
-- Namespace of the metadata for the access log (listener.py).
local LOG = "boxoffice.log"
local DETAILS = "grpc-status-details-bin"

local REASONS = {
  ["1"] = "DEPENDENCY_UNAVAILABLE",
  ["4"] = "DEADLINE_EXCEEDED",
  ["8"] = "OVERLOADED",
  ["12"] = "ROUTE_NOT_FOUND",
  ["14"] = "DEPENDENCY_UNAVAILABLE",
}

local function log(handle, key, value)
  handle:streamInfo():dynamicMetadata():set(LOG, key, value)
end

-- Notes an RPC's status and the reason of its error. Statuses and reasons in trailers are in the log
-- without this.
local function log_status(handle, code, reason)
  log(handle, "grpc_status", CODES[code] or code)
  if code ~= "0" then
    log(handle, "reason", reason or REASONS[code] or "INTERNAL")
  end
end

local function varint(number)
  local bytes = ""
  while number > 127 do
    bytes = bytes .. string.char(number % 128 + 128)
    number = math.floor(number / 128)
  end
  return bytes .. string.char(number)
end

local function length_delimited(tag, bytes)
  return string.char(tag) .. varint(#bytes) .. bytes
end

-- The google.rpc.Status with a message of this response, and RetryInfo, in base64 without padding.
local function limited_status(handle, message, seconds)
  local delay = length_delimited(0x0a, "\8" .. varint(seconds))
  local retry = length_delimited(0x0a, "type.googleapis.com/google.rpc.RetryInfo") .. length_delimited(0x12, delay)
  local status = LIMITED_CODE .. length_delimited(0x12, message) .. LIMITED_DETAILS .. length_delimited(0x1a, retry)
  return (handle:base64Escape(status):gsub("=+$", ""))
end

local function type_url(name)
  return '{"@type":"type.googleapis.com/google.rpc.' .. name .. '",'
end

-- Appends a detail. Envoy writes the keys in sorted order.
local function with_detail(json, detail)
  local position = json:find('],"message":', 1, true)
  if not position then
    return json
  end
  return json:sub(1, position - 1) .. "," .. detail .. json:sub(position)
end

-- The transcoder's text starts with the path of the invalid field if it is known, for example
-- `items[0].quantity: invalid value \"abc\" for type TYPE_INT32`, already JSON-escaped.
local function with_field(json, message)
  local field, description = json:match('"message":"([%w_%-%?%.%[%]]+): (.*)"}%s*$')
  if not field then
    description, field = json:match('"message":"(Could not find field \\"([%w_%.]+)\\".*)"}%s*$')
  end
  if not field then
    -- Other texts quote the request body and are replaced.
    return (json:gsub('"message":".*"}%s*$', function() return '"message":"' .. message .. '"}' end))
  end
  local violation = '{"field":"' .. field .. '","description":"' .. description .. '"}'
  return with_detail(json, type_url("BadRequest") .. '"fieldViolations":[' .. violation .. "]}")
end

-- Removes the limit of 2^32-1, which the rate limit filter reports for calls without limits. Adds
-- the standard's RateLimit headers to the others; limit_svc's value is followed by its window.
--
-- A bucket has no window that ends: `reset` is the time until it is full again. For a window, which has
-- 0 seconds per request, it is what limit_svc reports.
local function rate_limit_headers(handle, headers)
  local limit = headers:get("x-ratelimit-limit")
  if limit == "4294967295" then
    headers:remove("x-ratelimit-limit")
    headers:remove("x-ratelimit-remaining")
    headers:remove("x-ratelimit-reset")
  elseif limit then
    limit = limit:match("^%d+")
    local remaining = headers:get("x-ratelimit-remaining") or "0"
    headers:replace("ratelimit-limit", limit)
    headers:replace("ratelimit-remaining", remaining)
    local metadata = handle:metadata()
    local quota = (metadata:get("quotas") or {})[limit]
    if not quota then
      headers:replace("ratelimit-reset", headers:get("x-ratelimit-reset") or "0")
      return
    end
    local seconds, size, name = quota:match("^(%S+) (%S+) (%S+)$")
    local reset = math.ceil(math.max(0, tonumber(size) - tonumber(remaining)) * tonumber(seconds))
    if tonumber(seconds) == 0 then
      reset = tonumber(headers:get("x-ratelimit-reset") or 0)
    end
    reset = string.format("%d", reset)
    headers:replace("x-ratelimit-reset", reset)
    headers:replace("ratelimit-reset", reset)
    headers:replace("ratelimit", '"' .. name .. '";r=' .. remaining .. ";t=" .. reset)
    headers:replace("ratelimit-policy", metadata:get("quota_policy"))
  end
end

local function grpc_reply(handle, headers, code, message)
  local retry_after = headers:get("retry-after")
  if retry_after and message:find(SECONDS, 1, true) then
    message = message:gsub(SECONDS, retry_after)
    headers:replace(DETAILS, limited_status(handle, message, tonumber(retry_after)))
  end
  headers:replace(":status", "200")
  headers:replace("grpc-status", code)
  headers:replace("grpc-message", message)
end

-- The HTTP methods of the request's path if they do not include its own. replies.py writes PATHS
-- before this script.
local function other_verbs(request)
  local verb, path = request:match("^(%S+) ([^?]*)")
  for _, entry in ipairs(PATHS) do
    if verb and path:find(entry[1]) then
      return not (entry[2] .. ","):find(verb .. ",", 1, true) and entry[2]
    end
  end
end

local function wrong_verb(handle, headers, verbs)
  headers:replace(":status", "405")
  headers:replace("allow", verbs)
  log(handle, "reason", "METHOD_NOT_ALLOWED")
  local body = handle:body()
  if body and body:length() > 0 then
    body:setBytes('{"code":12,"details":[' .. type_url("ErrorInfo")
      .. '"reason":"METHOD_NOT_ALLOWED","domain":"boxoffice","metadata":{}}],'
      .. '"message":"the path does not support this HTTP method; see the Allow header"}')
  end
end

local function rest_reply(handle, headers, message, status, request)
  headers:remove(DETAILS)
  headers:remove("grpc-accept-encoding")
  if status then
    headers:replace(":status", status)
  end
  local verbs = request and other_verbs(request)
  if verbs then
    return wrong_verb(handle, headers, verbs)
  end
  status = headers:get(":status")
  if status ~= "401" then
    headers:remove("www-authenticate")
  end
  local retry_after = headers:get("retry-after")
  if status ~= "400" and not retry_after then
    return
  end
  local body = handle:body()
  if not body or body:length() == 0 then
    return
  end
  local json = body:getBytes(0, body:length())
  if status == "400" then
    json = with_field(json, message)
  end
  if retry_after then
    json = json:gsub(SECONDS, retry_after)
    json = with_detail(json, type_url("RetryInfo") .. '"retryDelay":"' .. retry_after .. 's"}')
  end
  -- Envoy sets content-length. `headers` is no longer valid: reading the body yielded the script.
  body:setBytes(json)
end

-- Both come from fields of the JSON. Quotes within texts are escaped, so a text cannot be mistaken
-- for a field.
local function location_and_etag(handle, location, etag)
  local body = handle:body()
  if not body or body:length() == 0 then
    return
  end
  local json = body:getBytes(0, body:length())
  if location then
    location = location:gsub("{(%w+)}", function(name)
      return json:match('"' .. name .. '":"([%w%-]+)"')
    end)
    handle:headers():replace("location", location)
  end
  local tag = etag and json:match('"etag":"([%w%-_.+/=]+)"')
  if tag then
    handle:headers():replace("etag", '"' .. tag .. '"')
  end
end

local function rest_success(handle, headers)
  local metadata = handle:metadata()
  local success = metadata:get("success_status")
  local location, etag = metadata:get("location"), metadata:get("etag")
  if success and success ~= 200 then
    headers:replace(":status", string.format("%d", success))
  end
  if location or etag then
    return location_and_etag(handle, location, etag)
  end
  if success == 204 then
    headers:remove("content-type")
    headers:remove("content-length")
    local body = handle:body()
    if body then
      body:setBytes("")
    end
  end
end

local function rest_error(handle, headers)
  if headers:get(":status") == "401" and not headers:get("www-authenticate") then
    headers:replace("www-authenticate", "Bearer")
  end
  local body = handle:body()
  if not body or body:length() == 0 then
    return
  end
  local json = body:getBytes(0, body:length())
  local delay = json:match('"retryDelay":"([%d%.]+)s"')
  if delay then
    handle:headers():replace("retry-after", string.format("%d", math.ceil(tonumber(delay))))
  end
  -- Its gRPC code alone would give 400.
  if json:find('"reason":"PAYMENT_FAILED"', 1, true) then
    handle:headers():replace(":status", "402")
  end
  local code = json:match('^{"code":(%d+)')
  if code then
    log_status(handle, code, json:match('"reason":"([%u_]+)"'))
  end
  -- For example `{"code":4,"message":"Deadline Exceeded","details":[]}` of an overloaded service.
  local head = json:match('^({"code":%d+,"message":".*","details":%[)%]}%s*$')
  if head then
    local reason = REASONS[code] or "INTERNAL"
    body:setBytes(head .. type_url("ErrorInfo") .. '"reason":"' .. reason .. '","domain":"boxoffice","metadata":{}}]}')
  end
end

-- The answer to HEAD, which requests.lua sent on as GET.
local function without_body(handle)
  local body = handle:body()
  if body and body:length() > 0 then
    body:setBytes("")
  end
  local headers = handle:headers()
  headers:remove("content-length")
  -- The compressor would make a body of the empty one.
  headers:replace("cache-control", (headers:get("cache-control") or "no-store") .. ", no-transform")
end

-- Tells proxies such as nginx not to buffer, and gives each message its version as event id: a
-- browser sends the last one as Last-Event-ID when it reconnects (requests.lua).
local function event_stream(handle, headers)
  headers:replace("x-accel-buffering", "no")
  if not handle:metadata():get("resumes") then
    return
  end
  for chunk in handle:bodyChunks() do
    local text = chunk:getBytes(0, chunk:length())
    local with_ids = text:gsub("data: ([^\n]*)\n", function(json)
      local version = json:match('"version":"?(%d+)')
      return version and "id: " .. version .. "\ndata: " .. json .. "\n"
    end)
    chunk:setBytes(with_ids)
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type") or ""
  local is_grpc = content_type:find("application/grpc", 1, true) == 1
  local message = headers:get(MESSAGE)
  rate_limit_headers(handle, headers)
  local code = headers:get(CODE) or headers:get("grpc-status")
  if code then
    log_status(handle, code, headers:get(REASON))
  end
  headers:remove(REASON)
  if message then
    local status, request = headers:get(STATUS), headers:get(REQUEST)
    headers:remove(MESSAGE)
    headers:remove(CODE)
    headers:remove(STATUS)
    headers:remove(REQUEST)
    if is_grpc then
      grpc_reply(handle, headers, code, message)
    else
      rest_reply(handle, headers, message, status, request)
    end
  elseif not is_grpc then
    headers:remove("grpc-status")
    headers:remove("grpc-message")
    headers:remove("grpc-encoding")
    headers:remove("grpc-accept-encoding")
    -- Only responses of the transcoder: the response to a CORS preflight has no content type.
    if content_type == "application/json" then
      if headers:get(":status") == "200" then
        rest_success(handle, headers)
      else
        rest_error(handle, headers)
      end
    elseif content_type == "text/event-stream" then
      event_stream(handle, headers)
    end
    if handle:streamInfo():dynamicMetadata():get("boxoffice.requests") then
      without_body(handle)
    end
  end
end
