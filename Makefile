# Strongroom. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
export CARGO_TERM_COLOR ?= auto
# What .ci/install puts there on a machine that lacks it.
export PATH := $(CURDIR)/.cache/go/bin:$(PATH)
TARGET := $(or $(CARGO_TARGET_DIR),target)
# rustup's cargo looks for its toolchain below HOME, which may be another than when it was
# installed.
ifeq ($(shell $(CARGO) --version 2>/dev/null),)
RUSTUP := $(wildcard $(dir $(shell command -v $(CARGO)))../../.rustup)
ifneq ($(RUSTUP),)
export RUSTUP_HOME ?= $(abspath $(RUSTUP))
endif
endif
# Rust and Go keep what they download and build below HOME; where that can't be written to, below
# .cache.
ifneq ($(shell [ -d "$$HOME" ] && [ -w "$$HOME" ] && echo yes),yes)
export CARGO_HOME ?= $(CURDIR)/.cache/cargo
export GOPATH ?= $(CURDIR)/.cache/gopath
export GOCACHE ?= $(CURDIR)/.cache/gocache
endif

.PHONY: help demo check test lint bench fuzz soak deb image test-image clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 \t\2/p' $(MAKEFILE_LIST) | expand -t 20

demo: ## a token, a master key in it, a server, and a real transit seal sealed and unsealed against it
	@.ci/install demo
	@# Go's compiler and Rust's side by side: from cold that is a minute less.
	@if command -v go >/dev/null; then tests/interop/build.sh seal >/dev/null 2>&1 & fi; $(CARGO) build --locked --profile demo --no-default-features --bin strongroom; status=$$?; wait; exit $$status
	@seal=; if command -v go >/dev/null; then \
		seal=$$(tests/interop/build.sh seal | sed -n 's/^seal //p'); \
	fi; STRONGROOM_SEAL_CLIENT=$$seal $(TARGET)/demo/strongroom demo

check: ## formatting, clippy, and the unit tests of what changed: under a minute once built
	@tests/check

test: ## every test (installs what it needs; under CI=true a missing tool fails instead of skipping)
	@.ci/install test
	@$(MAKE) --no-print-directory lint
	@tests/run

lint: ## fmt, clippy, cargo-deny, rustdoc, and a search for secrets
	@.ci/install lint
	$(CARGO) fmt --all --check
	$(CARGO) fmt --manifest-path fuzz/Cargo.toml --check
	$(CARGO) clippy --workspace --all-targets --quiet -- -D warnings
	$(CARGO) clippy --workspace --bin strongroom --test allocator --no-default-features --quiet -- -D warnings
	$(CARGO) fetch --locked --quiet # cargo-deny looks at every platform's dependencies, the build only at this one's
	$(CARGO) deny --offline --log-level error check bans licenses sources
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --workspace --no-deps --quiet
	tests/secrets || { status=$$?; [ $$status = 77 ] && [ "$$CI" != true ]; }

bench: ## benchmarks; ratios are printed and saved under target/bench/
	@.ci/install demo
	$(CARGO) bench --profile dist --bench appliance

fuzz: ## each parser fuzzed for FUZZ_SECONDS (default 60)
	@FUZZ_SECONDS=$${FUZZ_SECONDS:-60} tests/fuzz

soak: ## the server under load and token losses for SOAK_SECONDS (default 600)
	@.ci/install demo
	SOAK_SECONDS=$${SOAK_SECONDS:-600} $(CARGO) test --release --test recovery -- --ignored --nocapture soak

deb: ## the Debian package: program, units, manual pages, completions, examples
	@.ci/install deb
	@packaging/build.sh

image: ## the bootable image, into image/out (as root; docs/image.md)
	@.ci/install image
	@image/build.sh

test-image: ## every test of the bootable image, in QEMU: tens of minutes where it must emulate the processor
	@.ci/install image
	@[ -e image/out/SHA256SUMS ] || image/build.sh
	cargo test --test image -- --include-ignored --test-threads=1

clean: ## removes build output and caches
	@chmod -R u+w .cache 2>/dev/null || true # Go writes its modules read-only
	rm -rf target .cache image/out image/out-* # not image/keys: what they signed boots with them only
