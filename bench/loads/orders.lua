-- POST /orders, or /orders/batch where SIZE is over 1: arguments are SIZE, customers, products.
local size, customers, products

local function each(list)
  local found = {}
  for id in string.gmatch(list, "[^,]+") do found[#found + 1] = id end
  return found
end

function init(args)
  size, customers, products = tonumber(args[1]), each(args[2]), each(args[3])
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
end

local function order()
  return string.format('{"customer_id":"%s","product_id":"%s"}',
    customers[math.random(#customers)], products[math.random(#products)])
end

function request()
  if size == 1 then
    return wrk.format(nil, "/api/v1/orders", nil, order())
  end
  local orders = {}
  for n = 1, size do orders[n] = order() end
  return wrk.format(nil, "/api/v1/orders/batch", nil,
    '{"orders":[' .. table.concat(orders, ",") .. ']}')
end

done = require("summary")
