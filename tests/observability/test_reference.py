"""docs/reference/metrics.md lists the metrics of each process, and no others."""

import re

import pytest
from prometheus_client.registry import Collector

from api.resources.health import BESIDES
from ledger.runtime.metrics import WRITER, PublisherMetrics
from projections.projector import PROJECTOR
from tests.docs.test_reference import rows
from tests.harness import Stack
from tests.observability.scraping import metric_names

PAGE = "docs/reference/metrics.md"
COLLECTORS: dict[str, tuple[Collector, ...]] = {
    "api": (*PublisherMetrics().collectors, *BESIDES),
    "writer": WRITER,
    "projector": PROJECTOR,
}


@pytest.mark.parametrize("process", COLLECTORS)
def test_every_metric_is_documented_with_its_type_labels_and_help(process: str) -> None:
    documented = rows(PAGE, process)
    for collector in COLLECTORS[process]:
        (family,) = collector.collect()
        name = f"{family.name}_total" if family.type == "counter" else family.name
        kind, labels, meaning, example = documented[name]
        assert (kind, meaning) == (family.type, family.documentation)
        assert re.findall(r"`(\w+)`", labels) == list(collector._labelnames)  # type: ignore[attr-defined]
        assert name in example


@pytest.mark.parametrize("process", COLLECTORS)
async def test_a_process_exposes_the_documented_metrics_and_no_others(
    verbose_stack: Stack, process: str
) -> None:
    documented = set(rows(PAGE, process)) - {"metric"}
    families = {
        name for name in await metric_names(verbose_stack, process) if name.startswith("ledger_")
    }
    assert {name.removesuffix("_total") for name in documented} == families
