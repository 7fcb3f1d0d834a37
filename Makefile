# Federated DynaMMo. `make help` lists what there is; every target does its own set-up in .venv beside this file.
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
VENV := $(ROOT)/.venv
BIN := $(VENV)/bin
PYTHON ?= python3
# Holds the path it was made for: a copied or moved checkout gets an environment of its own.
STAMP := $(VENV)/installed.$(shell printf '%s' '$(ROOT)' | cksum | cut -d' ' -f1)

.DEFAULT_GOAL := help
.PHONY: help install demo deploy-demo test lint format stop clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s%s\n", $$1, $$2 }' '$(ROOT)/Makefile'

install: $(STAMP) ## Make .venv and install everything into it (about 6 GB, a few minutes)

$(STAMP): $(ROOT)/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name it by: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@rm -f '$(VENV)'/installed.*
	@echo 'Installing PyTorch, Flower and the rest into $(VENV) (once; about 6 GB, a few minutes)'
	@$(PYTHON) -m venv --clear '$(VENV)' || \
		{ echo 'The module venv is missing; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	@'$(BIN)/python' -m pip install --disable-pip-version-check --quiet --editable '$(ROOT)[dev]'
	@ln -sf dynammo-flwr '$(BIN)/flwr'
	@touch '$@'

demo: install ## Five sites learn ten digits in five tasks, by `flwr run`; leaves runs/digits-*/report.html
	@'$(BIN)/dynammo-sim' run '$(ROOT)/configs/digits.yaml' --engine flower --runs '$(ROOT)/runs'

deploy-demo: install ## Three hospitals on this machine: TLS, registered keys, equal to the simulation; takes minutes
	@'$(BIN)/dynammo-sim' deploy '$(ROOT)/configs/deployed_digits.yaml'

test: install ## Run all tests
	@cd '$(ROOT)' && '$(BIN)/python' -m pytest -n auto

lint: install ## Check style (ruff) and types (mypy --strict)
	@cd '$(ROOT)' && '$(BIN)/ruff' check . && '$(BIN)/ruff' format --check . && '$(BIN)/mypy'

format: install ## Format the code
	@cd '$(ROOT)' && '$(BIN)/ruff' check --fix . && '$(BIN)/ruff' format .

stop: ## Stop the SuperLink that `flwr run` started for this checkout
	@test ! -f '$(ROOT)/.flwr/port' || pkill -f "flower-superlink .*--port $$(cat '$(ROOT)/.flwr/port')" || true

clean: stop ## Remove the environment and caches; runs stay
	@rm -rf '$(VENV)' '$(ROOT)/.pytest_cache' '$(ROOT)/.mypy_cache' '$(ROOT)/.ruff_cache'
