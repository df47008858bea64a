# Everything runs in .venv, which is created by the first call and reused afterwards.
PYTHON ?= python3
BIN := .venv/bin
# On small tensors, two threads are many times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test coverage check docs lock sbom clean

demo: .venv/demo
	rm -rf demo-runs
	$(BIN)/defeat demo --out demo-runs

test: .venv/dev
	$(BIN)/pytest -n 2 -m "not slow and not real" --durations=10

coverage: .venv/dev
	$(BIN)/pytest -n 2 -m "not real" --cov --cov-report=term:skip-covered

check: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# A list of all packages in .venv and their licences, in the format CycloneDX.
sbom: .venv/demo
	$(PYTHON) -m venv .venv/sbom
	.venv/sbom/bin/pip install --quiet cyclonedx-bom
	.venv/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-file sbom.json $(BIN)/python

clean:
	rm -rf .venv demo-runs site

.venv/made:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	$(PYTHON) -m venv .venv
	touch $@

# make demo LOCKED=1 installs exactly the versions of demo.lock, by their hashes; make lock renews it.
.venv/demo: .venv/made pyproject.toml
ifdef LOCKED
	$(BIN)/pip install --quiet --require-hashes --requirement demo.lock
	$(BIN)/pip install --quiet --no-deps --editable .
else
	$(BIN)/pip install --quiet --editable ".[weights]"
endif
	touch $@

lock: .venv/made
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile pyproject.toml --extra weights --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --quiet --output-file demo.lock

.venv/dev: .venv/made pyproject.toml
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ .venv/demo

.venv/docs: .venv/made pyproject.toml
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@
