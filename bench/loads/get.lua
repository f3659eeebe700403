-- GET one of some paths, which are the arguments.
local paths

function init(args)
  paths = args
end

function request()
  return wrk.format("GET", paths[math.random(#paths)])
end

done = require("summary")
