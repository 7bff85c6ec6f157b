# The commands people and CI share.  `make setup` needs Python 3.11+ and nothing else.
PYTHON ?= python3
PY := .venv/bin/python
MINUTES ?= 60

.PHONY: setup demo test acceptance lint bench bench-audit bench-detectors bench-direct bench-fairness bench-rollup bench-scrape chaos-short chaos requirements clean

setup: .venv/.ready  ## .venv with the `offload` command in it

.venv/.ready: pyproject.toml ops/requirements.txt ops/setup.sh
	@PYTHON=$(PYTHON) sh ops/setup.sh >&2
	@touch $@

demo: setup  ## a pool, a batch to its end, a table; leaves nothing
	@sh ops/demo.sh

# a suite starts hundreds of Python processes: none compiles again what one has compiled, whatever the environment says
test acceptance: export PYTHONDONTWRITEBYTECODE :=

# three processes for two cores, as tests wait for one another's; files with the longest tests first, in this order: else
# those with few tests come last, and one core waits for the other
test: setup  ## the quick suite: unit, contract, integration
	@$(PY) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder --hypothesis-profile=quick -m "not slow" \
		tests/integration tests/contract tests/unit

LONGEST := large_file large_batch audit_sample nodes hours lives_of_jobs
acceptance: setup  ## the slow tests, the README's own commands, what leaves and what escalates, large batches, many lives of jobs
	@$(PY) -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder \
		$(LONGEST:%=tests/acceptance/test_%.py) tests/acceptance
	@$(PY) -m pytest -q -n 3 --dist loadfile -m "slow and not hypothesis" tests/integration tests/contract tests/unit
	@$(PY) -m pytest -q -n 2 --dist loadfile -m hypothesis tests/unit

lint: setup  ## ruff, mypy, import-linter
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@.venv/bin/lint-imports --no-cache

bench: setup  ## throughput and memory beside a plain Celery app, in one run
	@$(PY) -m tests.bench.throughput

bench-audit: setup  ## how the audit's test does on a thousand seeded streams
	@$(PY) -m tests.bench.audit

bench-detectors: setup  ## what the privacy detectors find and miss, and how fast
	@$(PY) -m tests.bench.detectors

bench-fairness: setup  ## what 100 jobs cost beside 10,000, and how right the time left is
	@$(PY) -m tests.bench.fairness

bench-direct: setup  ## what a call through the HTTP API costs over the same call made straight
	@$(PY) -m tests.bench.direct

bench-rollup: setup  ## how long an hour of a million calls takes to sum, and in how much memory
	@$(PY) -m tests.bench.rollup

bench-scrape: setup  ## what a scrape of /metrics takes on a ledger of 200,000 jobs
	@$(PY) -m tests.bench.scrape

chaos-short: setup  ## about 5 minutes: the proof of the proof, then every fault on both ledgers, times divided by ten
	@$(PY) -m pytest -q tests/chaos
	@$(PY) -m tests.chaos --ledger both --runs 1 --pools 2 --again 3

chaos: setup  ## the same for as long as asked, with the times of production: make chaos MINUTES=60
	@$(PY) -m tests.chaos --ledger both --minutes $(MINUTES) --divisor 1 --pools 6

requirements:  ## pin again; the file names no index
	@sh ops/pin.sh

clean:
	rm -rf .venv
