# `make demo` and `make test` need Python 3.11 or later, its venv module, and nothing else.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
# ONNX Runtime collects telemetry unless this is set before it is imported.
export ORT_DISABLE_TELEMETRY := 1

.PHONY: help demo test check serve install stubs bench campaign clean

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(INSTALLED) ## learn, serve and explain drawn creatures; writes demo.png
	$(BIN)/python examples/demo.py

serve: $(INSTALLED) ## serve what is in models/ on port 50051
	@test -d models || { echo "there are no models yet; run 'make demo' first" >&2; exit 1; }
	$(BIN)/pellucid-serve --repository models

test: $(INSTALLED) ## run the tests
	$(BIN)/python -m pytest

check: $(INSTALLED) ## lint, format, types and the API contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_contract.py tests/test_architecture.py

bench: $(INSTALLED) ## measure explained against plain latency
	$(BIN)/python benchmarks/latency.py

campaign: $(INSTALLED) ## everything a server must survive, in full; writes campaign.md, takes an hour
	$(BIN)/python -m tests.campaign --report campaign.md

install: $(INSTALLED) ## make the virtual environment

stubs: $(INSTALLED) ## write the gRPC stubs anew
	$(BIN)/python -m pip install --quiet --no-deps --editable .

$(INSTALLED): pyproject.toml hatch_build.py $(wildcard proto/pellucid/v1/*.proto proto/inference/*.proto)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { echo "Python's venv module is missing; on Debian: apt-get install python3-venv" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --editable ".[server,cpu,ray,training,figures,dev]"
	@touch $@

clean: ## remove the virtual environment and what the demo wrote
	rm -rf $(VENV) models demo.png
