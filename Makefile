# Everything a user or developer starts. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# What is built lies in the user's cache folder, so that a checkout stays a checkout and several share one build.
cache := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/rollcall
CARGO_TARGET_DIR ?= $(cache)/target
override CARGO_TARGET_DIR := $(abspath $(CARGO_TARGET_DIR))
export CARGO_TARGET_DIR

# Where rustup puts cargo, also if it was installed a moment ago: by `make setup`.
export PATH := $(PATH):$(or $(CARGO_HOME),$(HOME)/.cargo)/bin

programs := controller agent lab
# `dev`: the programs that the tests build anyway, unoptimised.
PROFILE ?= release
built := $(CARGO_TARGET_DIR)/$(if $(filter dev,$(PROFILE)),debug,$(PROFILE))
PREFIX ?= /usr/local
bindir := $(DESTDIR)$(PREFIX)/bin
# The nearest folder that is there tells whether installing needs sudo.
as_root = $$(dir="$(bindir)"; while [ ! -e "$$dir" ]; do dir=$$(dirname "$$dir"); done; [ -w "$$dir" ] || echo sudo)

# A test's name, or a part of it.
T ?=
# For `make fuzz`: how many inputs each property gets.
CASES ?= 200000
# For `make test-faults`: how many kills of each kind.
KILLS ?= 100

.PHONY: help setup build demo demo-shell demo-ui demo-down test test-unit test-lab test-faults lint bench fuzz install uninstall clean-cache

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## Install what is missing on this machine (Debian, Ubuntu; sudo)
	@lab/setup

build: ## The programs as they are shipped
	cargo build --profile $(PROFILE) --locked $(programs:%=--package rollcall-%)

demo: setup build ## Eleven hosts; Consul on ten of them, then all of it, secured
	@PROFILE=$(PROFILE) lab/demo up

demo-shell: ## A shell in the demo's network, with `controller` and `consul`
	@PROFILE=$(PROFILE) lab/demo shell

demo-ui: ## The demo's Consul in a browser of this machine
	@PROFILE=$(PROFILE) lab/demo ui

demo-down: ## Remove every trace of the demo
	@PROFILE=$(PROFILE) lab/demo down

test: ## Every test, on real hosts (root)
	@tests/run all

test-unit: ## The tests that need neither root nor hosts
	@tests/run unit

test-lab: ## The tests on real hosts (root); T=NAME: a part of a test's name, or a file's; T="ONE OTHER"
	@tests/run lab $(T)

test-faults: ## The full sweep of kills, races and pauses, counted in docs/faults.md (root; half an hour); KILLS=N
	@tests/faults $(KILLS)

test-readme: ## The commands of README and manual, as a newcomer runs them (root; builds the shipped programs)
	@tests/run readme

lint: ## Format and lints
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- --deny warnings

bench: build ## The benchmarks (root)
	@PATH="$(built):$$PATH"; for bench in $$(find benches -maxdepth 1 -type f -perm -u+x | sort); do "$$bench"; done

fuzz: ## Random input for every parser, for long: CASES=N inputs each
	PROPTEST_CASES=$(CASES) cargo test --locked --workspace --exclude rollcall-tests -- never_panic

install: build ## Programs to PREFIX/bin (/usr/local); the controller finds the agent beside itself
	@$(as_root) install -d -m 0755 "$(bindir)"
	@for program in $(programs); do \
	    $(as_root) install -m 0755 "$(built)/$$program" "$(bindir)/$$program"; echo "$(bindir)/$$program"; \
	done

uninstall: ## Remove what `make install` put there
	@$(as_root) rm -fv $(programs:%=$(bindir)/%)

clean-cache: ## Remove everything that was built or fetched into the user's cache folder
	@rm -rf "$(cache)"
	@if [ -n "$$(ls /run/rollcall-lab 2> /dev/null)" ]; then echo "labs are up, so their cache stays: lab down --all" >&2; \
	    else rm -rf "$(patsubst %/rollcall,%,$(cache))/rollcall-lab"; fi
