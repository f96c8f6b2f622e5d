-- The last touch on answers, after every other filter.
--
-- Envoy's own replies arrive here as JSON, marked by headers that errors.py adds. REST
-- clients get the JSON with the details that only the reply itself knows: the field at
-- fault, when to come back. gRPC and gRPC-Web clients get status, message and details.
-- All other answers of REST calls lose gRPC's headers and get their success status. An error
-- that gRPC's runtime made instead of a service gets the reason that its code stands for, and
-- a service's RetryInfo comes as Retry-After too.

local CODE = "x-boxoffice-code"
local MESSAGE = "x-boxoffice-message"
local DETAILS = "grpc-status-details-bin"

local REASONS = {
  ["1"] = "DEPENDENCY_UNAVAILABLE",
  ["4"] = "DEADLINE_EXCEEDED",
  ["8"] = "OVERLOADED",
  ["12"] = "ROUTE_NOT_FOUND",
  ["14"] = "DEPENDENCY_UNAVAILABLE",
}

local function type_url(name)
  return '{"@type":"type.googleapis.com/google.rpc.' .. name .. '",'
end

-- Adds a detail after those that the JSON has. Envoy writes the keys in sorted order.
local function with_detail(json, detail)
  local position = json:find('],"message":', 1, true)
  if not position then
    return json
  end
  return json:sub(1, position - 1) .. "," .. detail .. json:sub(position)
end

-- The transcoder's text starts with the field's path where it knows one, for example
-- `items[0].quantity: invalid value \"abc\" for type TYPE_INT32`, JSON-escaped already.
local function with_field(json, message)
  local field, description = json:match('"message":"([%w_%.%[%]]+): (.*)"}%s*$')
  if not field then
    description, field = json:match('"message":"(Could not find field \\"([%w_%.]+)\\".*)"}%s*$')
  end
  if not field then
    -- Anything else quotes the body, which no answer should.
    return (json:gsub('"message":".*"}%s*$', function() return '"message":"' .. message .. '"}' end))
  end
  local violation = '{"field":"' .. field .. '","description":"' .. description .. '"}'
  return with_detail(json, type_url("BadRequest") .. '"fieldViolations":[' .. violation .. "]}")
end

-- The limits filter reports a limit, the largest number, also where none holds.
local function hide_unlimited(headers)
  if headers:get("x-ratelimit-limit") == "4294967295" then
    headers:remove("x-ratelimit-limit")
    headers:remove("x-ratelimit-remaining")
    headers:remove("x-ratelimit-reset")
  end
end

local function grpc_reply(headers, code, message)
  headers:replace(":status", "200")
  headers:replace("grpc-status", code)
  headers:replace("grpc-message", message)
end

local function rest_reply(handle, headers, message)
  headers:remove(DETAILS)
  local status = headers:get(":status")
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
    json = with_detail(json, type_url("RetryInfo") .. '"retryDelay":"' .. retry_after .. 's"}')
  end
  -- Envoy sets content-length itself. `headers` is dead here: reading the body paused the script.
  body:setBytes(json)
end

local function rest_success(handle, headers)
  local success = handle:metadata():get("success_status")
  if not success or success == 200 then
    return
  end
  headers:replace(":status", string.format("%d", success))
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
  -- For example `{"code":4,"message":"Deadline Exceeded","details":[]}` of a service too busy.
  local head, code = json:match('^({"code":(%d+),"message":".*","details":%[)%]}%s*$')
  if head then
    local reason = REASONS[code] or "INTERNAL"
    body:setBytes(head .. type_url("ErrorInfo") .. '"reason":"' .. reason .. '","domain":"boxoffice","metadata":{}}]}')
  end
end

function envoy_on_response(handle)
  local headers = handle:headers()
  local content_type = headers:get("content-type") or ""
  local is_grpc = content_type:find("application/grpc", 1, true) == 1
  local message = headers:get(MESSAGE)
  hide_unlimited(headers)
  if message then
    local code = headers:get(CODE)
    headers:remove(MESSAGE)
    headers:remove(CODE)
    if is_grpc then
      grpc_reply(headers, code, message)
    else
      rest_reply(handle, headers, message)
    end
  elseif not is_grpc then
    headers:remove("grpc-status")
    headers:remove("grpc-message")
    headers:remove("grpc-encoding")
    headers:remove("grpc-accept-encoding")
    -- Only what the transcoder made: an answer to a browser's preflight has no content type.
    if content_type == "application/json" then
      if headers:get(":status") == "200" then
        rest_success(handle, headers)
      else
        rest_error(handle, headers)
      end
    end
  end
end
