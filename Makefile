# `make` alone prints what there is.  Every target installs what it needs into .venv first.
VENV := .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help install demo test check fix docs golden soak mutants benchmark clean
help:  ## print this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(STAMP)  ## make .venv with everything and the command vqbank in it

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[extract,remote,cluster,quantised,tensorboard,parquet,dev]'
	touch $(STAMP)

demo: install  ## make a small data set, bank its features, train heads, write a report, score a new video
	$(BIN)/vqbank demo

test: install  ## run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install  ## what CI runs: formatter, linter, import contracts, types, tests
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(MAKE) test

docs: install  ## build the pages of docs/ into build/docs
	$(BIN)/sphinx-build -q -W --keep-going docs build/docs

golden: install  ## compare every network and rule with what official code computes
	$(BIN)/python -m pytest -m golden

soak: install  ## kill, stop, refuse and interrupt some hundred times, and say in a table what held
	$(BIN)/python -m pytest -m soak -s

mutants: install  ## break ROOM=a/file.py in a copy, a line at a time: which breaks do TESTS="tests/..." miss?
	rm -rf .mutants && mkdir .mutants
	git ls-files -z | xargs -0 cp -a --parents -t .mutants
	printf '[cosmic-ray]\nmodule-path = "%s"\ntimeout = 120.0\ntest-command = "%s"\n[cosmic-ray.distributor]\nname = "local"\n' \
	    "$(ROOM)" "$(abspath $(BIN))/python -m pytest -qx $(TESTS)" > .mutants/mutants.toml
	cd .mutants && export PYTHONPATH=$$PWD OMP_NUM_THREADS=1 PATH=$(abspath $(BIN)):$$PATH && \
	    nice cosmic-ray baseline mutants.toml && cosmic-ray init mutants.toml mutants.sqlite && \
	    nice cosmic-ray exec mutants.toml mutants.sqlite && \
	    cr-report --show-diff --surviving-only mutants.sqlite

benchmark: install  ## bank, engine and networks against limits and peers, as ratios
	$(BIN)/python benchmarks/bank.py
	$(BIN)/python benchmarks/extract.py
	$(BIN)/python benchmarks/networks.py
	$(BIN)/python benchmarks/heads.py
	$(BIN)/python benchmarks/cagi.py
	$(BIN)/python benchmarks/report.py

fix: install  ## format the code and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## remove what the demo made (the bank too) and caches
	rm -rf demo .mutants .mypy_cache .ruff_cache .import_linter_cache .hypothesis
