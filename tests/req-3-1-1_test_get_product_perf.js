// REQ-3.1.1: product reads stay fast at 1,000/s. By hand, beside a running `make run`:
//
//   .venv/bin/k6 run tests/req-3-1-1_test_get_product_perf.js
//
// BASE_URL, PRODUCT_ID, RATE (a second) and DURATION_S change what is asked for.

import http from 'k6/http';
import { check } from 'k6';

const BASE_URL = __ENV.BASE_URL || 'http://127.0.0.1:8000';
const QUANTUM_LAPTOP = 'a1b2c3d4-e5f6-7890-1234-567890abcdef';
const RATE = Number(__ENV.RATE || 1000);
const URL = `${BASE_URL}/api/v1/products/${__ENV.PRODUCT_ID || QUANTUM_LAPTOP}`;

export const options = {
  discardResponseBodies: true,
  summaryTrendStats: ['min', 'med', 'p(95)', 'p(99)', 'max'],
  scenarios: {
    reads: {
      executor: 'constant-arrival-rate',
      rate: RATE,
      timeUnit: '1s',
      duration: `${__ENV.DURATION_S || 10}s`,
      preAllocatedVUs: RATE, // none is dropped for want of a client, even if a read takes 1 s
    },
  },
  thresholds: {
    http_req_duration: ['p(99)<100'],
    http_req_failed: ['rate==0'],
    dropped_iterations: ['count==0'],
    checks: ['rate==1'],
  },
};

export default function () {
  check(http.get(URL), { 'is 200': (response) => response.status === 200 });
}
