# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs in .venv.

PYTHON ?= python3
BIN := .venv/bin
UV := $(or $(shell command -v uv),.venv/tools/bin/uv)

.PHONY: demo test test-slow soak lint lock clean

demo: .venv/.ready
	$(BIN)/genray train demo

test: lint
	$(BIN)/python -m pytest

test-slow: lint
	$(BIN)/python -m pytest -m slow

soak: .venv/.ready
	$(BIN)/python tests/soak.py --minutes $(or $(MINUTES),30) --seed $(or $(SEED),0)

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.venv/.ready: requirements.lock requirements-uv.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "genray needs Python 3.11 or later: make PYTHON=python3.12 …")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x "$(UV)" || $(BIN)/python -m pip install --quiet --require-hashes --target .venv/tools -r requirements-uv.lock
	$(UV) pip sync --quiet --require-hashes --compile-bytecode --python $(BIN)/python requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch $@

lock:
	$(UV) pip compile --upgrade --universal --generate-hashes --no-header --no-annotate --group dev --all-extras pyproject.toml -o requirements.lock
	echo uv | $(UV) pip compile --upgrade --universal --generate-hashes --no-header --no-annotate - -o requirements-uv.lock

clean:
	rm -rf .venv runs
