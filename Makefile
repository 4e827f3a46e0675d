# Everything a person or a machine does with this repository. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
CARGO ?= cargo
PREFIX ?= /usr/local
UNIT_DIR ?= /etc/systemd/system
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)
FIGURES := $(abspath $(TARGET_DIR))/figures.txt
SIM_LINE := $(abspath $(TARGET_DIR))/sim.txt
SEEDS ?= 1000..1040
PROFILE ?= dev
HOST := $(shell rustc -vV 2>/dev/null | sed -n 's/^host: //p')
UID := $(shell id -u)
# Nodes, containers and networks need root. Building does not, and must not leave root's files in the checkout.
AS_ROOT := $(if $(filter 0,$(UID)),,sudo --preserve-env)
RUNNER := $(if $(AS_ROOT),CARGO_TARGET_$(shell echo '$(HOST)' | tr 'a-z-' 'A-Z_')_RUNNER='$(AS_ROOT)')

.PHONY: help setup setup-build build release demo test sim bench chaos fuzz schemathesis lint fmt deny install clean

help: ## List the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/\1\t\2/p' Makefile | expand -t 12

setup: ## Install the system packages that are missing (Debian, Ubuntu)
	@scripts/setup.sh build run test

setup-build:
	@scripts/setup.sh build

build: setup-build ## Build the flotilla binary
	$(CARGO) build -p flotilla

release: setup-build ## Build it optimized
	$(CARGO) build --release -p flotilla

demo: ## Three nodes on this machine run a job, lose a node, and heal
	@scripts/setup.sh build run
	$(CARGO) build -p flotilla
	@$(AS_ROOT) scripts/demo.sh $(TARGET_DIR)/debug/flotilla

test: setup lint ## Everything: format, lints, unit tests, end-to-end tests with real daemons
	@mkdir -p $(TARGET_DIR) && rm -f $(FIGURES)
	$(CARGO) build --workspace --bins
	@$(RUNNER) FIGURES=$(FIGURES) CARGO=$(CARGO) scripts/test.sh
	@echo && echo "What was measured:" && cat $(FIGURES)

sim: setup-build ## Simulate the store under faults; SEEDS=1000..1040, PROFILE=release for speed (docs/testing.md)
	@rm -f $(SIM_LINE)
	@SIM_SEEDS=$(SEEDS) SIM_LINE=$(SIM_LINE) $(CARGO) test -q --profile $(PROFILE) -p flotilla-raft --lib -- \
		--exact sim::runs::asked_for --nocapture || status=$$?; cat $(SIM_LINE) && exit $${status:-0}

bench: setup ## Measure beside etcd and runc; BENCH="pods idle" for some sections only (docs/benchmarks.md)
	@scripts/setup.sh bench
	$(CARGO) build --release -p flotilla -p flotilla-tests -p flotilla-raft -p flotilla-runtime --lib --bins --examples
	@$(AS_ROOT) $(TARGET_DIR)/release/bench $(BENCH)

chaos: setup ## Ten minutes of faults on five nodes under load, after a release build; CHAOS_SECONDS and CHAOS_SEED change that
	$(CARGO) build --release -p flotilla -p flotilla-tests --bins
	@$(AS_ROOT) $(TARGET_DIR)/release/chaos

fuzz: setup-build ## Fuzz every decoder, FUZZ_SECONDS (60) each; FUZZ="net api/cel" for some only (docs/testing.md)
	@CARGO=$(CARGO) scripts/fuzz.sh $(FUZZ)

schemathesis: setup ## Send a node what its OpenAPI allows and forbids; DOCUMENTS="apis/apps/v1", SCHEMATHESIS_SECONDS each
	$(CARGO) build -p flotilla
	@$(AS_ROOT) scripts/schemathesis.sh $(TARGET_DIR)/debug/flotilla $(DOCUMENTS)

lint: setup-build
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

fmt: ## Format the source
	$(CARGO) fmt --all

deny: ## Check licences, bans, sources and advisories (needs cargo-deny)
	$(CARGO) deny check

install: release ## Install the binary and its systemd unit
	$(AS_ROOT) install -D -m 755 $(TARGET_DIR)/release/flotilla $(DESTDIR)$(PREFIX)/bin/flotilla
	$(AS_ROOT) install -D -m 644 packaging/flotilla.service $(DESTDIR)$(UNIT_DIR)/flotilla.service
	@echo "next: systemctl enable --now flotilla"

clean: ## Remove what was built
	$(CARGO) clean
