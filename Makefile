# Two commands do everything from a fresh clone: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
UV := $(shell command -v uv 2>/dev/null || echo $(BIN)/uv)

.PHONY: venv demo test bench lint format constraints clean

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
	$(UV) pip compile --quiet --universal --upgrade --no-header --no-annotate --no-emit-index-url \
	    --all-extras --group dev pyproject.toml --output-file constraints.txt

clean:
	rm -rf .venv runs
