.DEFAULT_GOAL := help
.PHONY: help setup run test test-engines faults load bench bench-compare bench-growth check format clean

help: ## print the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with the pinned dependencies (the others do it when it's needed)
	@sh deploy/bootstrap.sh

run: setup ## start everything on this machine; Ctrl-C stops it and keeps the data
	@exec .venv/bin/ledger up

test: setup ## run the tests on private throw-away servers; ARGS are pytest's, instead of all
ifdef ARGS
	@exec .venv/bin/pytest $(ARGS)
else
	@.venv/bin/pytest -q -n 3 --dist loadfile --no-loadscope-reorder \
		--ignore tests/load --ignore tests/faults
	@.venv/bin/pytest -q tests/load
	@.venv/bin/pytest -q tests/faults
endif

test-engines: setup ## run the tests on newer servers and Pythons, in roots below ~/.cache
	@.venv/bin/python -m tests.engines $(ARGS)

faults: setup ## break everything once, then SEEDS=3 seeds for MINUTES=3 each; or only SEED
	@.venv/bin/python -m tests.faults $(if $(SEED),--seed $(SEED)) $(if $(SEEDS),--seeds $(SEEDS)) \
		$(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)
	$(if $(SEED)$(ARGS),,@.venv/bin/pytest -q -m slow)

load: setup ## run the three load tests of the contract against a running `make run`
	@.venv/bin/k6 run tests/req-3-1-1_test_get_product_perf.js
	@.venv/bin/python tests/req-3-2-1_test_race_condition.py
	@.venv/bin/k6 run tests/req-3-2-2_test_high_volume_test.js

bench: setup ## measure the ledger, its ceilings and its peer (10 min); ARGS=--quick, ARGS=--resume
	@.venv/bin/python -m bench $(ARGS)

bench-compare: setup ## measure two commits in turns: OLD=commit NEW=commit, ROUNDS=5 in MINUTES=15
	@.venv/bin/python -m bench.compare $(OLD) $(NEW) $(if $(ROUNDS),--rounds $(ROUNDS)) \
		$(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

bench-growth: setup ## the same with 5,000,000 events in the ledger, instead of 1,000,000
	@.venv/bin/python -m bench --growth $(ARGS)

check: setup ## check format, lint, types and import rules
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

format: setup ## format the code and sort its imports
	@.venv/bin/ruff check --select I --fix .
	@.venv/bin/ruff format .

clean: ## remove .venv and the tools' caches, not the data of `make run` in .ledger
	@rm -rf .venv .venv-peer .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	@find src tests -type d -name __pycache__ -prune -exec rm -rf {} +
