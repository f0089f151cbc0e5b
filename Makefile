# Two commands do everything from a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)

.PHONY: venv demo check test test-all forms test-lowest bench lint format constraints clean

venv: .venv/ready

.venv/ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	command -v uv >/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e . --group dev
	touch $@

demo: venv
	$(BIN)/fieldguide demo --out runs/demo

test: lint
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# Under a minute: format, lint, types, and the tests of pure functions.
FAST := $(addprefix tests/test_,$(addsuffix .py,project recipe seeds words columns metrics calibration \
    paired suspects coverage folds merge catalog files display))
check: lint
	$(BIN)/python -m pytest --quiet --numprocesses auto --dist worksteal --durations 0 --durations-min 5 $(FAST)

# All tests, also those that need extras, a store of S3's protocol, or Chromium if it is installed;
# outside CI. s3fs needs an older python-dateutil than constraints.txt has, so it comes last and free.
test-all: .venv-all/ready .venv-all/onnxruntime-web .venv-lite/ready forms
	.venv-all/bin/python -m pytest --numprocesses auto --dist worksteal

# The samples of tests/forms, written again by the real tools, each in an environment of its own.
forms:
	set -e; for script in tests/forms/make_*.sh; do bash $$script; done
	git diff --exit-code --stat tests/forms

.venv-all/ready: pyproject.toml constraints.txt .venv/ready
	test -x .venv-all/bin/python || $(PYTHON) -m venv .venv-all
	$(UV) pip install --quiet --python .venv-all/bin/python -c constraints.txt -e '.[cluster,heic,mat,onnx,parquet,remote,serve,tiff,track]' --group dev
	$(UV) pip install --quiet --python .venv-all/bin/python s3fs 'moto[server]'
	touch $@

# The runtime of pages that answer in the browser, where npm is there to fetch it.
.venv-all/onnxruntime-web: .venv-all/ready
	if command -v npm >/dev/null; then .venv-all/bin/python -c "from pathlib import Path; \
	    from fieldguide.study import page_files; page_files.fetch(Path('$@'))"; fi

# The small distribution, from its own wheel.
.venv-lite/ready: lite/pyproject.toml constraints.txt .venv/ready $(shell find src -name '*.py')
	rm -rf .venv-lite && $(PYTHON) -m venv .venv-lite
	$(UV) build --quiet --wheel lite --out-dir .venv-lite/dist
	$(UV) pip install --quiet --python .venv-lite/bin/python -c constraints.txt .venv-lite/dist/*.whl
	touch $@

# The tests with the lowest versions that pyproject.toml allows, which may warn of their own age; outside CI.
test-lowest: venv
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(UV) pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct -e . --group dev
	.venv-lowest/bin/python -m pytest -W default::DeprecationWarning --numprocesses auto --dist worksteal $(TESTS)

# All but the long ones, or those named: make bench PARTS="step epoch --rounds 9"
bench: venv
	$(BIN)/python benchmarks/speed $(PARTS)

lint: venv
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: venv
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# Exact versions of everything, without the address of any index.
constraints:
	$(UV) pip compile --quiet --universal --upgrade --no-header --no-annotate \
	    --all-extras --group dev pyproject.toml --output-file constraints.txt

clean:
	rm -rf .venv .venv-all .venv-lite .venv-lowest runs
