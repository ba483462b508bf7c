# The few commands that people need. PYTHON=... picks another interpreter.
PYTHON ?= python

.PHONY: help install lint format types docs site quick test slow bench audit wheel check

help:            ## this list
	@sed -nE 's/^([a-z]+):.*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 12

install:         ## package and test tools into the current environment
	$(PYTHON) -m pip install -e '.[test,docs]'

lint:            ## style, without changing anything
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format:          ## style, repaired
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types:           ## mypy over package and benchmarks
	$(PYTHON) -m mypy

docs:            ## documents that are made from code, e.g. after a change of properties/
	$(PYTHON) -m docs.generate

site:            ## the documentation as a site, with the API, into build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict

quick:           ## a minute: losses, data, settings and trie; no runs, no sweep of backbones
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n 2 --dist loadscope -m "not slow and not integration" \
		tests/losses/test_sets.py tests/losses/test_pairwise.py tests/losses/test_listwise.py \
		tests/losses/test_unpaired.py tests/data tests/scoring/test_trie.py tests/scoring/test_windows.py \
		tests/settings/test_llmrec.py tests/settings/test_text.py tests/runtime/test_shown_text.py tests/runtime/test_durable_files.py

test:            ## everything that runs in minutes
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q -n 2 --dist loadscope -m "not slow"

slow:            ## also the tests that take long or need a real model
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest -q

bench:           ## speed and memory beside what they replace, about ten minutes
	$(PYTHON) -m benchmarks.training_step
	$(PYTHON) -m benchmarks.ranking
	$(PYTHON) -m benchmarks.data

audit:           ## known vulnerabilities of what is installed; asks PyPI
	$(PYTHON) -m pip_audit

wheel:           ## sdist and wheel into dist/
	$(PYTHON) -m build

check: lint types test  ## what to run before a commit
