// A constant rate of orders or of reads of one product, and what each took.
// BASE_URL, RATE (requests a second), DURATION_S, CUSTOMERS and PRODUCTS (ids, parted by commas),
// SIZE (orders a request; each is of the next customer and product), and KIND: orders or reads.

import http from 'k6/http';
import { check } from 'k6';

const API = `${__ENV.BASE_URL}/api/v1`;
const RATE = Number(__ENV.RATE);
const SIZE = Number(__ENV.SIZE);
const CUSTOMERS = __ENV.CUSTOMERS.split(',');
const PRODUCTS = __ENV.PRODUCTS.split(',');
const ORDERS = Array.from({ length: SIZE }, (_, n) => ({
  customer_id: CUSTOMERS[n % CUSTOMERS.length],
  product_id: PRODUCTS[n % PRODUCTS.length],
}));
const [PATH, ASKED] = SIZE === 1 ? ['/orders', ORDERS[0]] : ['/orders/batch', { orders: ORDERS }];
const BODY = JSON.stringify(ASKED);
const HEADERS = { headers: { 'Content-Type': 'application/json' } };

export const options = {
  discardResponseBodies: true,
  summaryTrendStats: ['min', 'med', 'p(90)', 'p(99)', 'max'],
  scenarios: {
    open: {
      executor: 'constant-arrival-rate',
      rate: RATE,
      timeUnit: '1s',
      duration: `${__ENV.DURATION_S}s`,
      preAllocatedVUs: Math.min(RATE, 100), // each opens a connection of its own
      maxVUs: RATE, // more, should the answers be slow
    },
  },
};

export default function () {
  const orders = __ENV.KIND === 'orders';
  const answer = orders
    ? http.post(`${API}${PATH}`, BODY, HEADERS)
    : http.get(`${API}/products/${PRODUCTS[0]}`);
  check(answer, { 'as expected': ({ status }) => status === (orders ? 202 : 200) });
}

export function handleSummary({ metrics }) {
  const of = (name) => (metrics[name] ? metrics[name].values : {});
  const took = of('http_req_duration');
  return {
    stdout: JSON.stringify({
      requests: of('http_reqs').count,
      refused: of('checks').fails,
      dropped: of('dropped_iterations').count || 0,
      p50: took.med * 1000,
      p90: took['p(90)'] * 1000,
      p99: took['p(99)'] * 1000,
      max: took.max * 1000,
    }),
  };
}
