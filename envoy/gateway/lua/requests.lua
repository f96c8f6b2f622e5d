-- Checks REST requests against the contract, before the transcoder, which drops unknown fields.
--
-- Refused with 400 are: unknown and repeated fields, a field that the path or the body already
-- gives, null, an object in place of a list and the reverse, unknown enum values, and bodies that
-- are not JSON. gRPC calls and raw bodies (google.api.HttpBody) pass. requests.py writes before
-- this script:
--
--   SECRETS   patterns of paths up to a secret, which logs and traces show as "-"
--   ROOT      a tree of REST paths: `children` by segment, `any` for a variable, `verbs`
--   a verb    {body = FIELDS or nil, query = FIELDS, raw = true}
--   FIELDS    fields by name, in both spellings, each {name=, kind=, list=, fields=, values=}
--             kind: "message", "enum", "time", "scalar" or "path"
--
-- A refusal begins with the path of the field and a colon; replies.lua makes a violation of it.

local find, sub, byte = string.find, string.sub, string.byte

local MAX_NAME_BYTES = 64
local MAX_PARAMETERS = 100

-- The name as the client wrote it, without characters that a message must not contain.
local function shown(name)
  return (sub(name, 1, MAX_NAME_BYTES):gsub("[^%w_%-]", "?"))
end

-- Levenshtein distance of two short names.
local function distance(a, b)
  local row = {}
  for j = 0, #b do
    row[j] = j
  end
  for i = 1, #a do
    local diagonal = row[0]
    row[0] = i
    for j = 1, #b do
      local above = row[j]
      local cost = byte(a, i) == byte(b, j) and 0 or 1
      row[j] = math.min(above + 1, row[j - 1] + 1, diagonal + cost)
      diagonal = above
    end
  end
  return row[#b]
end

-- The known name that is most like `name`; nil if none is similar.
local function nearest(fields, name)
  local best, best_distance
  local plain = sub(name, 1, MAX_NAME_BYTES):lower():gsub("[_%-]", "")
  for _, field in pairs(fields) do
    if field.kind ~= "path" then
      local known = field.name:lower()
      local steps = distance(plain, known)
      -- An abbreviation or an addition, e.g. `amount` for `amountMinor`.
      if #plain > 2 and (find(known, plain, 1, true) or find(plain, known, 1, true)) then
        steps = math.min(steps, 2)
      end
      local is_nearer = not best or steps < best_distance
        or (steps == best_distance and field.name < best)
      if steps <= math.max(2, #known / 2) and is_nearer then
        best, best_distance = field.name, steps
      end
    end
  end
  return best
end

local function unknown(fields, name, kind)
  local known = nearest(fields, name)
  return "unknown " .. kind .. (known and "; did you mean " .. known .. "?" or "")
end

local function refuse(path, text)
  error({ path .. ": " .. text }, 0)
end

local function not_json(position)
  refuse("body", "is not JSON at byte " .. position)
end

-- The position of the next character that is not white space.
local function skip(json, position)
  return find(json, "[^ \t\r\n]", position) or #json + 1
end

-- The position after the string whose opening quote is at `position`, and its text as written.
local function read_string(json, position)
  local start = position + 1
  local stop = start
  while true do
    stop = find(json, '["\\%z\1-\31]', stop)
    local character = stop and byte(json, stop)
    if character == 34 then
      return stop + 1, sub(json, start, stop - 1)
    elseif character ~= 92 then
      return not_json(stop or #json + 1)
    elseif find(json, '^["\\/bfnrt]', stop + 1) then
      stop = stop + 2
    elseif find(json, "^u%x%x%x%x", stop + 1) then
      stop = stop + 6
    else
      return not_json(stop)
    end
  end
end

-- The position after a number.
local function read_number(json, position)
  local _, stop = find(json, "^-?0", position)
  if not stop then
    _, stop = find(json, "^-?[1-9]%d*", position)
  end
  if not stop then
    return not_json(position)
  end
  local _, fraction = find(json, "^%.%d+", stop + 1)
  stop = fraction or stop
  local _, exponent = find(json, "^[eE][+-]?%d+", stop + 1)
  return (exponent or stop) + 1
end

local ESCAPED = { b = "\b", f = "\f", n = "\n", r = "\r", t = "\t" }

-- A field's name without escapes. Names of the contract are ASCII.
local function unescaped(text)
  if not find(text, "\\", 1, true) then
    return text
  end
  text = text:gsub("\\u00(%x%x)", function(hex) return string.char(tonumber(hex, 16)) end)
  return (text:gsub("\\([^u])", function(letter) return ESCAPED[letter] or letter end))
end

local function check_enum(field, path, value)
  if field.values[value] then
    return
  end
  local known = {}
  for name in pairs(field.values) do
    if type(name) == "string" and not find(name, "_UNSPECIFIED$") and find(name, "^%a") then
      known[#known + 1] = name
    end
  end
  table.sort(known)
  refuse(path, "must be one of " .. table.concat(known, ", "))
end

local read_object

-- The position after a value that is not null.
local function read_value(json, position, field, path)
  local first = byte(json, position)
  if first == 123 then -- {
    if field.kind ~= "message" then
      refuse(path, "must not be an object")
    end
    return read_object(json, position, field.fields, path .. ".")
  elseif first == 91 then -- [
    return refuse(path, "must not be a list")
  elseif first == 34 then -- "
    local stop, text = read_string(json, position)
    if field.kind == "enum" then
      check_enum(field, path, text)
    elseif field.kind == "message" then
      refuse(path, "must be an object")
    end
    return stop
  end
  local _, stop = find(json, "^true", position)
  if not stop then
    _, stop = find(json, "^false", position)
  end
  stop = stop and stop + 1 or read_number(json, position)
  if field.kind == "enum" then
    check_enum(field, path, sub(json, position, stop - 1))
  elseif field.kind == "message" then
    refuse(path, "must be an object")
  end
  return stop
end

-- The position after the list whose bracket is at `position`.
local function read_list(json, position, field, path)
  position = skip(json, position + 1)
  if byte(json, position) == 93 then
    return position + 1
  end
  local number = 0
  while true do
    local element = path .. "[" .. number .. "]"
    if find(json, "^null", position) then
      refuse(element, "must not be null")
    end
    position = skip(json, read_value(json, position, field, element))
    local after = byte(json, position)
    if after == 93 then
      return position + 1
    elseif after ~= 44 then
      return not_json(position)
    end
    position = skip(json, position + 1)
    number = number + 1
  end
end

-- The position after the object whose brace is at `position`. `prefix` comes before field names.
function read_object(json, position, fields, prefix)
  position = skip(json, position + 1)
  if byte(json, position) == 125 then
    return position + 1
  end
  local seen = {}
  while true do
    if byte(json, position) ~= 34 then
      return not_json(position)
    end
    local name
    position, name = read_string(json, position)
    name = unescaped(name)
    position = skip(json, position)
    if byte(json, position) ~= 58 then
      return not_json(position)
    end
    position = skip(json, position + 1)
    local field = fields[name]
    local path = prefix .. (field and name or shown(name))
    if not field then
      refuse(path, unknown(fields, name, "field"))
    elseif field.kind == "path" then
      refuse(path, "is part of the path; leave it out of the body")
    elseif seen[field.name] then
      refuse(path, seen[field.name] == name and "is written twice"
        or "is the same field as " .. seen[field.name] .. "; write it once")
    end
    seen[field.name] = name
    if find(json, "^null", position) then
      refuse(path, "must not be null; leave the field out")
    elseif not field.list then
      position = read_value(json, position, field, path)
    elseif byte(json, position) == 91 then
      position = read_list(json, position, field, path)
    else
      refuse(path, "must be a list")
    end
    position = skip(json, position)
    local after = byte(json, position)
    if after == 125 then
      return position + 1
    elseif after ~= 44 then
      return not_json(position)
    end
    position = skip(json, position + 1)
  end
end

local function check_body(json, fields)
  local position = skip(json, 1)
  if byte(json, position) ~= 123 then
    refuse("body", "must be a JSON object")
  end
  position = skip(json, read_object(json, position, fields, ""))
  if position <= #json then
    not_json(position)
  end
end

local function decoded(text)
  return (text:gsub("+", " "):gsub("%%(%x%x)", function(hex)
    return string.char(tonumber(hex, 16))
  end))
end

-- The field of a parameter such as `page_size` or `item.offer_id`.
local function parameter(fields, name)
  local field
  for part in name:gmatch("[^.]+") do
    field = fields and fields[part]
    if not field then
      return nil
    end
    fields = field.fields
  end
  return field
end

-- Checks the parameters. Returns the query with `+` of times as `%2B`: elsewhere it is a space.
local function check_query(query, fields)
  local seen, count, changed = {}, 0, false
  local parts = {}
  for part in query:gmatch("[^&]+") do
    count = count + 1
    if count > MAX_PARAMETERS then
      refuse("query", "must have at most " .. MAX_PARAMETERS .. " parameters")
    end
    local raw, value = part:match("^([^=]*)=?(.*)$")
    local name = decoded(raw)
    local field = parameter(fields, name)
    if not field then
      refuse(shown(name), unknown(fields, name, "query parameter"))
    elseif field.kind == "path" then
      refuse(name, "is part of the path; leave it out of the query")
    elseif seen[field] and not field.list then
      refuse(name, seen[field] == name and "is given twice"
        or "is the same parameter as " .. seen[field] .. "; give it once")
    end
    seen[field] = name
    if field.kind == "enum" then
      check_enum(field, name, decoded(value))
    elseif field.kind == "time" and find(value, "+", 1, true) then
      part, changed = raw .. "=" .. value:gsub("+", "%%2B"), true
    end
    parts[count] = part
  end
  return changed and table.concat(parts, "&")
end

-- The verbs of a path, as the transcoder finds them: literal segments first.
local function verbs_of(node, path, position, verb)
  local start, stop = find(path, "[^/]+", position)
  if not start then
    return node.verbs and node.verbs[verb]
  end
  local child = node.children and node.children[sub(path, start, stop)]
  local target = child and verbs_of(child, path, stop + 1, verb)
  return target or (node.any and verbs_of(node.any, path, stop + 1, verb))
end

local function check(handle, headers, target, path, query)
  if query then
    local changed = check_query(query, target.query)
    if changed then
      headers:replace(":path", path .. "?" .. changed)
    end
  end
  if target.raw then
    return
  end
  local is_inflated = headers:get("x-boxoffice-content-encoding")
  if is_inflated then
    headers:remove("x-boxoffice-content-encoding")
  end
  -- Yields until the body is complete: `headers` is not valid after it.
  local body = handle:body()
  if is_inflated and not (body and body:length() > 0) then
    refuse("body", "is not gzip")
  end
  if body and body:length() > 0 then
    check_body(body:getBytes(0, body:length()), target.body)
  end
end

-- HEAD is answered as GET; replies.lua removes the body. Streams have no HEAD: it would not end.
local function target_of(handle, headers, path)
  local verb = headers:get(":method")
  if verb ~= "HEAD" then
    return verbs_of(ROOT, path, 1, verb)
  end
  local target = verbs_of(ROOT, path, 1, "GET")
  if target and target.head then
    headers:replace(":method", "GET")
    handle:streamInfo():dynamicMetadata():set("boxoffice.requests", "head", "true")
    return target
  end
end

-- A browser that reconnects to an event stream sends the id of the last message.
local function resumed(headers, path, query)
  local last = headers:get("last-event-id")
  if last and find(last, "^%d+$") and not find(query, "after_?[vV]ersion=") then
    query = query .. (query == "" and "" or "&") .. "after_version=" .. last
    headers:replace(":path", path .. "?" .. query)
  end
  return query
end

function envoy_on_request(handle)
  local headers = handle:headers()
  -- The scheme is case-insensitive (RFC 9110 section 11.1); jwt_authn knows one spelling.
  local authorization = headers:get("authorization")
  if authorization and not find(authorization, "^Bearer ") then
    local token = authorization:match("^[bB][eE][aA][rR][eE][rR] +(.*)$")
    if token then
      authorization = "Bearer " .. token
      headers:replace("authorization", authorization)
    end
  end
  if authorization and find(authorization, API_KEY) then
    handle:streamInfo():dynamicMetadata():set(API_KEYS, API_KEY_MARK, true)
  end
  if find(headers:get("content-type") or "", "^application/grpc") then
    return
  end
  -- CONNECT has no path.
  local path, query = (headers:get(":path") or ""):match("^([^?]*)%??(.*)$")
  for _, secret in ipairs(SECRETS) do
    local logged, count = path:gsub(secret, "%1-")
    if count > 0 then
      handle:streamInfo():dynamicMetadata():set("boxoffice.log", "path", logged)
    end
  end
  local target = target_of(handle, headers, path)
  if not target then
    if path == "/" then
      headers:replace(":path", WELCOME)
      handle:clearRouteCache()
    end
    return
  end
  local encoding = headers:get("content-encoding")
  if encoding and encoding ~= "identity" then
    handle:respond({ [":status"] = "415" }, "content-encoding: must be gzip or absent")
    return
  end
  if target.resumes then
    query = resumed(headers, path, query)
  end
  local is_valid, refusal = pcall(check, handle, headers, target, path, query ~= "" and query)
  if not is_valid then
    if type(refusal) ~= "table" then
      -- A defect here must not let requests pass unchecked, as Envoy does when a script fails.
      handle:logErr(tostring(refusal))
      handle:respond({ [":status"] = "500" }, "")
      return
    end
    handle:respond({ [":status"] = "400" }, refusal[1])
  end
end
