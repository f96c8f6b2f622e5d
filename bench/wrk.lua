-- Sends the requests of a plan in turn: load.py writes it, one request a line.
-- Arguments after `--`: the plan's file, a prefix of idempotency keys, and `once` or `repeat`.

local thread_of_run

function setup(thread)
  thread_of_run = thread -- load.py starts wrk with one thread.
end

function init(args)
  heads, bodies, sent, prefix, first = {}, {}, 0, args[2], true
  for line in io.lines(args[1]) do
    local verb, path, token, body = line:match("^(%S+)\t(%S+)\t(%S*)\t(.*)$")
    local head = {verb .. " " .. path .. " HTTP/1.1", "host: bench"}
    if token ~= "" then head[#head + 1] = "authorization: Bearer " .. token end
    if body ~= "" then
      head[#head + 1] = "content-type: application/json"
      head[#head + 1] = "content-length: " .. #body
    end
    head[#head + 1] = "idempotency-key: "
    heads[#heads + 1] = table.concat(head, "\r\n")
    bodies[#bodies + 1] = "\r\n\r\n" .. body
  end
  if args[3] == "once" then
    -- After the last request connections wait; after the last answer load.py ends the run.
    left, turns = #heads, 0
    delay = function()
      turns = turns + 1
      return turns > #heads and 1e6 or 0
    end
  end
end

function request()
  -- wrk asks for one request before the run and does not send it.
  if first then first = false else sent = sent + 1 end
  local n = (math.max(sent, 1) - 1) % #heads + 1
  return heads[n] .. prefix .. sent .. bodies[n]
end

function response(status, headers, body)
  local name = "status_" .. status
  _G[name] = (_G[name] or 0) + 1
  if status >= 300 then failure = body end
  if left then
    left = left - 1
    if left == 0 then print("ALL ANSWERED") io.flush() end
  end
end

function done(summary, latency, requests)
  local statuses = {}
  for status = 100, 599 do
    local count = thread_of_run:get("status_" .. status)
    if count then statuses[#statuses + 1] = string.format('"%d": %d', status, count) end
  end
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"seconds": %.6f, "p50_ms": %.3f, "p99_ms": %.3f, "broken": %d, "statuses": {%s}}\n',
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.timeout, table.concat(statuses, ", ")))
  io.write("FAILURE " .. (thread_of_run:get("failure") or "") .. "\n")
end
