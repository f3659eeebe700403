// REQ-3.2.2: 1,000 orders/s are accepted, and afterwards the accounts agree to the cent. By hand,
// beside a running `make run`:
//
//   .venv/bin/k6 run tests/req-3-2-2_test_high_volume_test.js
//
// BASE_URL, RATE (a second), DURATION_S and USERS change what is asked for. A product and a customer are
// made for each run; there is a unit for every order, so that all three steps of the price come up.

import http from 'k6/http';
import { check, fail } from 'k6';
import { Counter, Trend } from 'k6/metrics';

const API = `${__ENV.BASE_URL || 'http://127.0.0.1:8000'}/api/v1`;
const RATE = Number(__ENV.RATE || 1000);
const DURATION_S = Number(__ENV.DURATION_S || 10);
const USERS = Number(__ENV.USERS || Math.min(RATE, 3000));

const STOCK = RATE * DURATION_S;
const BASE_PRICE = 100;
const HIGHEST_PRICE = 1.5 * BASE_PRICE;
const CENT = 0.01;
const PAGE = 500;
const JSON_BODY = { 'Content-Type': 'application/json' };

// One up for each 202, one down for each order that the view shows afterwards.
const lost = new Counter('orders_lost');
const catchUp = new Trend('views_catch_up', true);
// The first request of a user opens a connection, which the others keep.
const onNew = new Trend('on_new_connections', true);
const onKept = new Trend('on_kept_connections', true);

export const options = {
  discardResponseBodies: true,
  summaryTrendStats: ['min', 'med', 'p(95)', 'p(99)', 'max'],
  scenarios: {
    orders: {
      executor: 'constant-arrival-rate',
      rate: RATE,
      timeUnit: '1s',
      duration: `${DURATION_S}s`,
      // At 1,000/s none is dropped for want of a client, even if an order takes 1 s.
      preAllocatedVUs: USERS,
    },
  },
  thresholds: {
    'http_req_duration{scenario:orders}': ['p(99)<1000'],
    http_req_failed: ['rate==0'],
    dropped_iterations: ['count==0'],
    checks: ['rate==1'],
    orders_lost: ['count==0'],
    views_catch_up: ['max<2000'],
  },
};

export function setup() {
  const product = decided('/products', { name: 'Load', base_price: BASE_PRICE, stock: STOCK });
  const customer = decided('/customers', { username: 'load' });
  const path = `/customers/${customer.customer_id}/deposits`;
  const { wallet_balance } = decided(path, { amount: 2 * STOCK * HIGHEST_PRICE });
  return {
    product_id: product.product_id,
    customer_id: customer.customer_id,
    wallet_cents: cents(wallet_balance),
  };
}

export default function ({ product_id, customer_id }) {
  const response = http.post(`${API}/orders`, JSON.stringify({ product_id, customer_id }), {
    headers: JSON_BODY,
  });
  const { connecting, duration } = response.timings;
  (connecting > 0 ? onNew : onKept).add(connecting + duration);
  if (check(response, { 'is 202': ({ status }) => status === 202 })) {
    lost.add(1);
  }
}

export function teardown({ product_id, customer_id, wallet_cents }) {
  // The inbox is a queue: once this last cent shows, so does every order before it.
  const asked_at = Date.now();
  const customer = decided(`/customers/${customer_id}/deposits`, { amount: CENT });
  catchUp.add(Date.now() - asked_at);

  const orders = ordersOf(customer_id);
  const completed = orders.filter(({ status }) => status === 'COMPLETED');
  const paid_cents = completed.reduce((sum, { price_paid }) => sum + cents(price_paid), 0);
  const { stock } = get(`/products/${product_id}`);
  lost.add(-orders.length);
  check(null, {
    'every order is COMPLETED or FAILED': () =>
      orders.every(({ status }) => status === 'COMPLETED' || status === 'FAILED'),
    'orders complete while there is stock': () =>
      completed.length === Math.min(orders.length, STOCK),
    'stock = start - completed': () => stock === STOCK - completed.length,
    'wallet = start - paid': () =>
      cents(customer.wallet_balance) === wallet_cents - paid_cents + cents(CENT),
  });
}

function ordersOf(customer_id) {
  const orders = [];
  let after = null;
  do {
    const from = after === null ? '' : `&after=${after}`;
    const page = get(`/orders?customer_id=${customer_id}&limit=${PAGE}${from}`);
    orders.push(...page.items);
    after = page.next_after;
  } while (after !== null);
  return orders;
}

// What a POST made, as the views show it; the run ends if they don't within 30 s.
function decided(path, body) {
  const response = http.post(API + path, JSON.stringify(body), {
    headers: { ...JSON_BODY, Prefer: 'wait=30' },
    responseType: 'text',
  });
  if (response.status !== 200 && response.status !== 201) {
    fail(`POST ${path}: ${response.status} ${response.body}`);
  }
  return response.json();
}

function get(path) {
  const response = http.get(API + path, { responseType: 'text' });
  if (response.status !== 200) {
    fail(`GET ${path}: ${response.status} ${response.body}`);
  }
  return response.json();
}

// Exact: a number with two decimals is never further than half a cent from its double.
function cents(amount) {
  return Math.round(amount * 100);
}
