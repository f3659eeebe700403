"""GET /docs, and GET /docs/{asset}: the API to read and try out, from this server alone."""

import re

import httpx
import pytest

from api.resources.docs import ASSETS, POLICY
from tests.harness import Stack

from .client import problem


@pytest.fixture
def site(stack: Stack, http: httpx.AsyncClient) -> str:
    """Where the API serves."""
    return stack.url


async def test_the_page_is_html_that_loads_the_openapi_document(
    site: str, http: httpx.AsyncClient
) -> None:
    page = await http.get(f"{site}/docs")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    start = await http.get(f"{site}/docs/start.js")
    assert '"/openapi.json"' in start.text


@pytest.mark.parametrize("path", ["/redoc", "/redoc/"])
async def test_redoc_leads_to_the_page(site: str, http: httpx.AsyncClient, path: str) -> None:
    answer = await http.get(site + path)
    assert (answer.status_code, answer.headers["location"]) == (308, "/docs")


async def test_every_file_of_the_page_is_served(site: str, http: httpx.AsyncClient) -> None:
    page = (await http.get(f"{site}/docs")).text
    assets = re.findall(r'(?:src|href)="/docs/([^"]+)"', page)
    assert set(assets) == set(ASSETS)
    for name in assets:
        asset = await http.get(f"{site}/docs/{name}")
        assert asset.status_code == 200
        kind = "text/css" if name.endswith(".css") else "text/javascript"
        assert asset.headers["content-type"] == f"{kind}; charset=utf-8"
        assert asset.headers["x-content-type-options"] == "nosniff"


async def test_the_page_loads_nothing_from_other_sites(site: str, http: httpx.AsyncClient) -> None:
    page, start = await http.get(f"{site}/docs"), await http.get(f"{site}/docs/start.js")
    assert not re.search(r"https?:|//", page.text + start.text)
    assert "validatorUrl: null" in start.text
    assert page.headers["content-security-policy"] == POLICY
    assert "http" not in POLICY
    assert "*" not in POLICY
    assert "unsafe" not in POLICY


async def test_a_browser_with_the_current_version_gets_a_304(
    site: str, http: httpx.AsyncClient
) -> None:
    for path in ("/docs", "/docs/swagger-ui-bundle.js"):
        etag = (await http.get(site + path)).headers["etag"]
        again = await http.get(site + path, headers={"If-None-Match": etag})
        assert (again.status_code, again.content) == (304, b"")


@pytest.mark.parametrize("name", ["x", "docs.html", "..%2Fdocs.html", "swagger-ui-bundle.js.map"])
async def test_no_other_file_is_served(site: str, http: httpx.AsyncClient, name: str) -> None:
    problem(await http.get(f"{site}/docs/{name}"), 404, "no-such-path")
