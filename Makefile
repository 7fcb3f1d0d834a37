# Federated DynaMMo. `make help` lists what there is; every target does its own set-up in .venv beside this file.
ROOT := $(patsubst %/,%,$(dir $(abspath $(lastword $(MAKEFILE_LIST)))))
VENV := $(ROOT)/.venv
BIN := $(VENV)/bin
PYTHON ?= python3
# Holds the path it was made for: a copied or moved checkout gets an environment of its own.
STAMP := $(VENV)/installed.$(shell printf '%s' '$(ROOT)' | cksum | cut -d' ' -f1)

# FedAvg of a small network on Fashion-MNIST: what is measured is the federation.
MANY_SITES := --set backbone.name=small_cnn --set backbone.weights=random --set data.image_size=16 \
	--set federation.partition=iid --set tasks.sizes='[10]' --set method.name=joint \
	--set method.train.rounds=3 --set method.train.epochs=1
ALL_IMAGES := --set data.train_per_class=null

# Of `make privacy`: other images, and the method that sends sums.
FASHION := --set data.dataset=fashion_mnist --set data.image_size=64 --set data.train_per_class=200 --set data.test_per_class=100
SUMS := --set method.name=streaming_ridge --set method.multi_scale=false --set privacy.feature_norm=65

# Of `make gpu`: the paper's adapter tuning, with images of 224 pixels and ResNet-18, on images that need no download.
ON_A_GPU := --set backbone.name=resnet18 --set backbone.weights=random --set data.image_size=224 \
	--set data.augmentation=crop_flip --set tasks.sizes='[10]' --set method.adapt.rounds=1 --set method.adapt.epochs=2 \
	--set compute.threads=4 --set compute.feature_megabytes=4000

.DEFAULT_GOAL := help
.PHONY: help install install-site demo deploy-demo secure-demo privacy bench gpu doors soak test quick lint format docs lock sbom stop clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s%s\n", $$1, $$2 }' '$(ROOT)/Makefile'

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

# pip honours a hospital's own mirror; only uv can choose a PyTorch by what it computes on, and it does so by name.
install-site: ## What a site needs, into .venv, without the developers' tools; TORCH=cpu: PyTorch without CUDA
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed; name it by: make PYTHON=/path/to/python3.11 ...' >&2; exit 1; }
	@test -n '$(TORCH)' || command -v nvidia-smi > /dev/null || \
		echo 'No GPU was found here: `make TORCH=cpu install-site` leaves out CUDA, most of the size'
	@$(PYTHON) -m venv --clear '$(VENV)'
ifeq ($(TORCH),)
	@'$(BIN)/python' -m pip install --disable-pip-version-check --quiet '$(ROOT)[dicom]'
else
	@'$(BIN)/python' -m pip install --disable-pip-version-check --quiet uv
	@'$(BIN)/uv' pip install --quiet --python '$(BIN)/python' --torch-backend '$(TORCH)' '$(ROOT)[dicom]'
endif
	@echo "Installed $$(du -sh '$(VENV)' | cut -f1) into $(VENV)"

demo: install ## Five sites learn ten digits in five tasks, by `flwr run`; leaves runs/digits-*/report.html
	@'$(BIN)/dynammo-sim' run '$(ROOT)/configs/digits.yaml' --engine flower --runs '$(ROOT)/runs'

deploy-demo: install ## Three hospitals on this machine: TLS, registered keys, equal to the simulation; takes minutes
	@'$(BIN)/dynammo-sim' deploy '$(ROOT)/configs/deployed_digits.yaml'

secure-demo: install ## The same with secure aggregation too: the server learns sums alone; takes half an hour
	@'$(BIN)/dynammo-sim' deploy '$(ROOT)/configs/deployed_digits.yaml' --set federation.secure_aggregation=true

privacy: install ## What leaks, without protection and with it, and what protection costs: takes an hour
	@'$(BIN)/dynammo-sim' run '$(ROOT)/configs/private_digits.yaml' --set privacy.mechanism=none --runs '$(ROOT)/runs/privacy/plain'
	@'$(BIN)/dynammo-sim' run '$(ROOT)/configs/private_digits.yaml' --runs '$(ROOT)/runs/privacy/private'
	@'$(BIN)/dynammo-sim' audit-privacy "$$(ls -dt '$(ROOT)'/runs/privacy/plain/*/ | head -1)" \
		--compare "$$(ls -dt '$(ROOT)'/runs/privacy/private/*/ | head -1)"
	@for data in '' '$(FASHION)'; do for method in '' '$(SUMS)'; do \
		'$(BIN)/dynammo-sim' bench privacy '$(ROOT)/configs/private_digits.yaml' $$data $$method || exit 1; done; done
	@'$(BIN)/dynammo-sim' bench secure '$(ROOT)/configs/digits.yaml'

bench: install ## Speed, as ratios within one run: answers, training, memory, bytes, and what grows with what
	@'$(BIN)/dynammo-sim' bench inference '$(ROOT)/configs/fashion_mnist.yaml'
	@'$(BIN)/dynammo-sim' bench training '$(ROOT)/configs/digits.yaml'
	@'$(BIN)/dynammo-sim' bench memory
	@'$(BIN)/dynammo-sim' bench images
	@'$(BIN)/dynammo-sim' bench bytes '$(ROOT)/configs/digits.yaml' --set tasks.sizes='[2, 2]'
	@'$(BIN)/dynammo-sim' bench sites '$(ROOT)/configs/fashion_mnist.yaml' --count 20 --engine local $(MANY_SITES)
	@'$(BIN)/dynammo-sim' bench engines '$(ROOT)/configs/fashion_mnist.yaml' --only loop --only local --only flower \
		--set federation.sites=20 $(MANY_SITES)
	@'$(BIN)/dynammo-sim' bench growth --out '$(ROOT)/runs/growth' \
		--only tasks=1,5,20 --only sites=1,10,100 --only classes=10,100 --only exemplars=40,640

gpu: install ## A GPU: its tests, and images a second of each stage, into runs/gpu/gpu.json; minutes; skips without one
	@'$(BIN)/dynammo-sim' bench gpu '$(ROOT)/configs/digits.yaml' --out '$(ROOT)/runs/gpu' --tests '$(ROOT)/tests' $(ON_A_GPU)

doors: install ## Researcher, operator and site engineer follow their tutorials: commands, minutes, error messages
	@cd '$(ROOT)' && '$(BIN)/python' -m pytest -m soak -s tests/doors

soak: install ## Every moment of a stop, faults in a deployment, lying sites, 1,000 sites, the doors: over an hour
	@cd '$(ROOT)' && '$(BIN)/python' -m pytest -n auto --dist loadscope -m soak
	@cd '$(ROOT)' && '$(BIN)/python' -m pytest -n auto --dist loadscope -m hypothesis --hypothesis-profile thorough
	@'$(BIN)/dynammo-sim' faults '$(ROOT)/configs/deployed_digits.yaml' --set federation.attempts=2 --set tasks.sizes='[2, 2]'
	@'$(BIN)/dynammo-sim' robustness '$(ROOT)/configs/digits.yaml' --runs '$(ROOT)/runs/robustness'
	@'$(BIN)/dynammo-sim' bench sites '$(ROOT)/configs/fashion_mnist.yaml' --count 100 --engine local $(MANY_SITES) $(ALL_IMAGES)
	@'$(BIN)/dynammo-sim' bench sites '$(ROOT)/configs/fashion_mnist.yaml' --count 1000 --engine local $(MANY_SITES) $(ALL_IMAGES)
	@'$(BIN)/dynammo-sim' bench sites '$(ROOT)/configs/fashion_mnist.yaml' --count 100 --engine flower $(MANY_SITES) $(ALL_IMAGES)
	@'$(BIN)/dynammo-sim' bench engines '$(ROOT)/configs/fashion_mnist.yaml' --environment '$(ROOT)/build/pfl' \
		--set federation.sites=100 $(MANY_SITES) $(ALL_IMAGES)

# Files are dealt out in their order: the whole systems, which take longest, come near the beginning.
test: install ## Run all tests, some minutes on two cores
	@cd '$(ROOT)' && '$(BIN)/python' -m pytest -n auto --dist loadscope --no-loadscope-reorder

quick: install ## Run the tests that start no program and run no whole experiment: after every change
	@cd '$(ROOT)' && '$(BIN)/python' -m pytest -n auto --dist loadscope --quick

lint: install ## Check style (ruff) and types (mypy --strict)
	@cd '$(ROOT)' && '$(BIN)/ruff' check . && '$(BIN)/ruff' format --check . && '$(BIN)/mypy'

format: install ## Format the code
	@cd '$(ROOT)' && '$(BIN)/ruff' check --fix . && '$(BIN)/ruff' format .

docs: install ## Write the parts of docs/reference that the code decides
	@cd '$(ROOT)' && PYTHONPATH=. '$(BIN)/python' docs/generate.py

lock: install ## Pin what a site and a server install, with hashes, as pyproject.toml allows it
	@cd '$(ROOT)' && for part in 'site/requirements --extra dicom' \
		'site/requirements-privacy --extra dicom --extra privacy' \
		'server/requirements --extra server'; do set -- $$part; file=docs/$$1.txt; shift; \
		'$(BIN)/uv' pip compile pyproject.toml --extra build "$$@" \
		--generate-hashes --python-version 3.11 --python-platform linux --no-emit-index-url --no-emit-find-links \
		--upgrade --quiet --custom-compile-command 'make lock' --output-file "$$file" || exit 1; done

sbom: install ## List what a site and a server install, as CycloneDX: build/sbom-site.json, build/sbom-server.json
	@mkdir -p '$(ROOT)/build' && cd '$(ROOT)' && for part in site server; do \
		'$(BIN)/cyclonedx-py' requirements docs/$$part/requirements.txt --pyproject pyproject.toml \
		--output-reproducible --of JSON -o build/sbom-$$part.json || exit 1; done

stop: ## Stop the SuperLink that `flwr run` started for this checkout
	@test ! -f '$(ROOT)/.flwr/port' || pkill -f "flower-superlink .*--port $$(cat '$(ROOT)/.flwr/port')" || true

clean: stop ## Remove the environment and caches; runs stay
	@rm -rf '$(VENV)' '$(ROOT)/.pytest_cache' '$(ROOT)/.mypy_cache' '$(ROOT)/.ruff_cache'
