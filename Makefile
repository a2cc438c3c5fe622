# Vitrine: what a person needs to try it, test it and measure it. Set-up is part of each target and says what it does; install.sh
# comes first where the next program is one that it installs.

.DEFAULT_GOAL := help
.PHONY: help demo test bench build image clean-cache

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Only a KUBECONFIG given to make: one that the shell exports is there for other reasons, and may be a cluster that matters.
demo: export VITRINE_DEMO_KUBECONFIG := $(if $(findstring command line,$(origin KUBECONFIG)),$(KUBECONFIG))
demo: ## Watch a manifest become a verified image; KUBECONFIG=… uses a cluster that exists
	@tests/demo/run.sh

test: ## Formatting, lints and every test; the last line counts them
	@tests/images/install.sh && python3 tests/run.py

bench: ## Measure against qemu-img and the way CDI imports; prints a table (needs 30 GiB of disk)
	@tests/images/install.sh && python3 tests/bench/bench.py $(or $(ROUNDS),5) $(GROUP)

build: ## Build the release binary, target/release/vitrine
	cargo build --release --locked --bin vitrine

image: build ## Build the container image for this machine's processor, target/vitrine.tar; needs no container engine
	python3 config/image/build.py --binary "$$(dpkg --print-architecture)=$(or $(CARGO_TARGET_DIR),target)/release/vitrine" \
	  --output "$(or $(CARGO_TARGET_DIR),target)/vitrine.tar"

clean-cache: ## Remove what the other targets keep outside the tree (built tools, test disks, corpus)
	@tests/clean-cache.sh
