"""GET /problems/{kind}: where the `type` of every error leads."""

import httpx
import pytest

from api.http.problems import KINDS

from .client import problem


@pytest.mark.parametrize("kind", KINDS)
async def test_the_type_of_a_problem_leads_to_its_remedy(
    http: httpx.AsyncClient, kind: str
) -> None:
    found = await http.get(str(http.base_url.join(f"/problems/{kind}")))
    assert found.status_code == 200
    status, title, remedy, _ = KINDS[kind]
    assert found.json() == {
        "type": f"/problems/{kind}",
        "title": title,
        "status": status,
        "remedy": remedy,
    }


async def test_an_unknown_kind_is_a_404(http: httpx.AsyncClient) -> None:
    problem(await http.get(str(http.base_url.join("/problems/bad-luck"))), 404, "no-such-path")
