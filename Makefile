# Thin: every target is a line or two that calls the tool.
VENV   := .venv
PYTHON ?= python3
BIN    := $(VENV)/bin

# What the build and the bench need of the host, by Debian's and Ubuntu's names.
HOST_PACKAGES := bubblewrap debian-archive-keyring e2fsprogs file git iproute2 mmdebstrap mount nftables python3 python3-venv systemd-container util-linux
# What tests look at pages with.
BROWSER_PACKAGES := chromium-headless-shell fonts-dejavu-core
SUDO := $(if $(filter 0,$(shell id -u)),,sudo --preserve-env=KUBERMESH_TURN,KUBERMESH_UNTIL)

.PHONY: image test test-unit lint format setup bench verify clean help

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

image: setup ## Build the image into ./out (needs root).
	$(SUDO) $(BIN)/kmbuild image

test: setup $(VENV)/.browser ## Run all tests: units, builds, the image's content, booted clusters (needs root).
	$(SUDO) $(BIN)/kmbuild image
	$(SUDO) $(BIN)/pytest --durations=25 --durations-min=20

test-unit: $(VENV)/.installed ## Run the tests that need neither root nor an image; seconds.
	$(BIN)/pytest tests/unit

lint: $(VENV)/.installed ## Check style, types and elements.
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	PATH=$(CURDIR)/$(BIN):$$PATH ELEMENTS_DIR=elements LIB_DIR=elements dib-lint

format: $(VENV)/.installed ## Format the code.
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: setup ## Measure what docs/benchmarks.md publishes (needs root).
	@command -v debootstrap >/dev/null || $(SUDO) apt-get install -qq debootstrap
	@command -v bmaptool >/dev/null || $(SUDO) apt-get install -qq bmap-tools
	$(SUDO) $(BIN)/python -m tests.bench

verify: setup ## Break clusters on purpose and prove that they heal (needs root, an image, and two hours).
	$(SUDO) $(BIN)/kmbuild verify
	$(SUDO) $(BIN)/kmbuild verify --driver qemu --output verdict-qemu

setup: $(VENV)/.host $(VENV)/.installed ## Install what the project needs on this machine.

$(VENV)/.host: Makefile
	@missing=; for package in $(HOST_PACKAGES); do \
		dpkg-query -W -f '$${db:Status-Status}' $$package 2>/dev/null | grep -qx installed || missing="$$missing $$package"; done; \
	if [ -n "$$missing" ]; then $(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $$missing; fi
	@mkdir -p $(VENV) && touch $@

$(VENV)/.browser: $(VENV)/.host
	@command -v chromium-headless-shell >/dev/null || { $(SUDO) apt-get update -qq && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends $(BROWSER_PACKAGES); }
	@touch $@

$(VENV)/.installed: pyproject.toml $(VENV)/.host
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[test]'
	@touch $@

clean: ## Remove ./out and the virtual environment; the build cache stays (`kmbuild cache clean`).
	$(SUDO) rm -rf out $(VENV)
