# Two commands on a fresh machine: `make demo` and `make test`. Each sets up what it needs in .venv.

PYTHON ?= python3
BIN := .venv/bin
UV := $(or $(shell command -v uv),.venv/tools/bin/uv)

.PHONY: demo test test-slow mutations soak lint docs dist lock clean

demo: .venv/.ready
	$(BIN)/genray train demo

test: lint
	@# Tests that start a Ray mostly wait: they run one after the other, next to all others.
	@mkdir -p build; $(BIN)/python -m pytest -m "ray and not slow" >build/test-ray.log 2>&1 & ray=$$!; \
	$(BIN)/python -m pytest -m "not ray and not slow"; rest=$$?; \
	wait $$ray; started=$$?; cat build/test-ray.log; exit $$((rest | started))

test-slow: lint
	$(BIN)/python -m pytest -m slow

mutations: .venv/.ready
	$(BIN)/python tests/mutations.py

soak: .venv/.ready
	$(BIN)/python tests/soak.py --minutes $(or $(MINUTES),30) --seed $(or $(SEED),0)

lint: .venv/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/.ready # the site in build/docs; a broken reference fails
	$(BIN)/python -m sphinx -E -n -W --keep-going -q -d build/doctrees docs build/docs

dist: .venv/.ready # sdist and wheel in dist/, without network
	$(BIN)/python -m build --no-isolation --outdir dist .

.venv/.ready: install.sh requirements.lock requirements-uv.lock pyproject.toml
	PYTHON="$(PYTHON)" ./install.sh .venv
	touch $@

lock:
	$(UV) pip compile --upgrade --universal --generate-hashes --no-header --no-annotate --group dev --all-extras pyproject.toml -o requirements.lock
	echo uv | $(UV) pip compile --upgrade --universal --generate-hashes --no-header --no-annotate - -o requirements-uv.lock
	echo google-api-python-client | $(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -c requirements.lock - -o cluster/requirements-gcp.lock
	printf 'boto3\npsycopg2-binary\n' | $(UV) pip compile --upgrade --universal --python-version 3.11 --generate-hashes --no-header --no-annotate -c requirements.lock - -o cluster/requirements-mlflow.lock

clean:
	rm -rf .venv runs build dist
