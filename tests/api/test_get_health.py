"""GET /health/live, and GET /health/ready."""

from urllib.parse import urljoin

import httpx

from .client import register


async def test_a_process_with_all_it_needs_is_ready(http: httpx.AsyncClient) -> None:
    await register(http)
    response = await http.get(urljoin(str(http.base_url), "/health/ready"))
    body = response.json()
    assert response.status_code == 200
    assert body["status"] == "ready"
    assert {body["inbox"], body["announcements"], body["views"]} == {True}
    assert body["position"] >= 1
    assert response.headers["cache-control"] == "no-store"


async def test_a_process_that_answers_is_live(http: httpx.AsyncClient) -> None:
    response = await http.get(urljoin(str(http.base_url), "/health/live"))
    assert response.status_code == 200
    assert response.json() == {"status": "live"}
