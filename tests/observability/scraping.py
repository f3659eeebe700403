"""Scraping /metrics as Prometheus does."""

import httpx
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from tests.harness import Stack, eventually

PROCESSES = ("api", "writer", "projector")


class Samples(dict[tuple[str, frozenset[tuple[str, str]]], float]):
    """The samples of one scrape, by name and labels."""

    def of(self, name: str, **labels: str) -> float:
        """One sample; 0 if there is none yet."""
        return self.get((name, frozenset(labels.items())), 0.0)

    def total(self, name: str, **labels: str) -> float:
        """The sum over the samples that have these labels, whatever others they have."""
        wanted = set(labels.items())
        return sum(v for (found, have), v in self.items() if found == name and wanted <= have)


async def scrape(stack: Stack, process: str) -> Samples:
    """The samples of a process now."""
    return Samples(
        ((sample.name, frozenset(sample.labels.items())), sample.value)
        for family in await _families(stack, process)
        for sample in family.samples
    )


async def metric_names(stack: Stack, process: str) -> set[str]:
    """The names of the metrics of a process, with samples or without."""
    return {family.name for family in await _families(stack, process)}


async def _families(stack: Stack, process: str) -> list[Metric]:
    ports = {
        "api": stack.settings.api_port,
        "writer": stack.settings.writer_metrics_port,
        "projector": stack.settings.projector_metrics_port,
    }
    async with httpx.AsyncClient() as http:
        url = f"http://127.0.0.1:{ports[process]}/metrics"
        response = await eventually(lambda: _answer(http, url), f"{process} shows its metrics")
    assert response.status_code == 200, response.text
    assert response.headers["content-type"].startswith("text/plain; version=")
    return list(text_string_to_metric_families(response.text))


async def _answer(http: httpx.AsyncClient, url: str) -> httpx.Response | None:
    """The answer; none while the process is still starting."""
    try:
        return await http.get(url)
    except httpx.ConnectError:
        return None
