# Every target needs only make and Python 3.11 or newer; the rest is put into .venv the first time.

# The first Python on the path that is new enough; set PYTHON to choose another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$python" && break; done)
BIN := .venv/bin

.PHONY: help demo test contract robust check gen typescript bench fmt baseline environment

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: environment ## the main job: review the packages of this environment, with two crashes on the way
	@$(BIN)/antiphon demo $(ARGS)

test: environment ## all tests; ARGS="tests/unit -x" runs some of them
	@$(BIN)/python -m pytest -q $(or $(ARGS),--numprocesses=auto --dist=loadfile)

contract: environment ## every RPC against its contract on a real mesh, golden bytes, planted faults
	@$(BIN)/python -m pytest -q tests/contract $(ARGS)

robust: environment ## promises under faults, in their long forms: an hour and more; ARGS as with test
	@ANTIPHON_ROBUST=1 $(BIN)/python -m pytest -q tests/robustness tests/simulation $(ARGS)

check: environment ## formats, lint, types, contracts, module boundaries, generated code
	@$(BIN)/python tools/check.py $(ARGS)

gen: environment ## generate what is derived from protos/, docs/failures.md from the tests, and the reference of settings
	@$(BIN)/python protos/generate.py
	@$(BIN)/python tools/failures.py
	@$(BIN)/python tools/settings.py

typescript: environment ## build the TypeScript SDK, for agents that use it from this checkout
	@$(BIN)/python tools/node.py --build

bench: environment ## measure speed and memory, and write benchmarks/results/latest.json
	@$(BIN)/python -m benchmarks $(ARGS)

fmt: environment ## format Python, protos, and Go where there is a toolchain
	@$(BIN)/ruff check --quiet --fix . || true
	@$(BIN)/ruff format .
	@$(BIN)/buf format --write
	@! command -v gofmt >/dev/null || gofmt -w sdk/go examples/compliance benchmarks/agents tools/porcupine

baseline: environment ## at a release: keep its contracts, which later ones must not break
	@$(BIN)/buf build --exclude-source-info -o protos/baseline.binpb

environment:
	@test -n "$(PYTHON)" || { echo "antiphon: needs Python 3.11 or newer; install one (Debian: apt-get install python3 python3-venv), or run: make PYTHON=/path/to/python" >&2; exit 1; }
	@$(PYTHON) tools/environment.py
