# Everything runs in .venv, which is created by the first call and reused afterwards.
PYTHON ?= python3
BIN := .venv/bin
# On small tensors, two threads are many times slower than one.
export OMP_NUM_THREADS ?= 1

.PHONY: demo test coverage check docs clean

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
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

clean:
	rm -rf .venv demo-runs site

.venv/made:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python 3.11 or newer is needed')"
	$(PYTHON) -m venv .venv
	touch $@

.venv/demo: .venv/made pyproject.toml
	$(BIN)/pip install --quiet --editable ".[weights]"
	touch $@

.venv/dev: .venv/made pyproject.toml
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@ .venv/demo

.venv/docs: .venv/made pyproject.toml
	$(BIN)/pip install --quiet --editable ".[docs]"
	touch $@
