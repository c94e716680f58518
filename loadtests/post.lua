-- wrk: POST the rows of a file in turn, so that no server sees the same row twice running.
local requests, at = {}, 0

function init(args)
  for line in io.lines(args[2]) do
    requests[#requests + 1] = wrk.format("POST", args[1], { ["Content-Type"] = "application/json" }, line)
  end
end

function request()
  at = at % #requests + 1
  return requests[at]
end

function done(summary, latency, _)
  local e = summary.errors
  io.write(string.format("BENCH %d %d %d %.1f %.1f %.1f\n", summary.requests, summary.duration,
    e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(95), latency:percentile(99)))
end
