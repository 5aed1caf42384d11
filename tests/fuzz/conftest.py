"""How many examples: a few in every run of the suite, thousands with --hypothesis-profile=long."""

import os

from hypothesis import HealthCheck, settings

QUIET = (HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large)
EXAMPLES = {"few": 25, "long": int(os.environ.get("FUZZ_EXAMPLES", "3000"))}
for name, count in EXAMPLES.items():
    settings.register_profile(
        name, max_examples=count, deadline=None, derandomize=name == "few", database=None,
        suppress_health_check=QUIET, print_blob=True,
    )  # fmt: skip
settings.load_profile("few")
