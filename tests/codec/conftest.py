"""How Hypothesis searches here: new examples each run, and a failure prints how to repeat it."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "ledger",
    deadline=None,
    derandomize=False,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ledger")
