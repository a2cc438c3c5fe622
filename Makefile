# Vitrine: what a person needs to try it, test it and measure it. Set-up is part of each target and says what it does.

.DEFAULT_GOAL := help
.PHONY: help demo test bench build clean-cache

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## Watch a manifest become a verified image; KUBECONFIG=… uses a cluster that exists
	@tests/demo/run.sh

test: ## Formatting, lints and every test; the last line counts them
	@python3 tests/run.py

bench: ## Measure against qemu-img and the way CDI imports; prints a table (needs 20 GiB of disk)
	@python3 tests/bench/bench.py $(ROUNDS)

build: ## Build the release binary, target/release/vitrine
	cargo build --release --locked --bin vitrine

clean-cache: ## Remove what the other targets keep outside the tree (built tools, test disks, corpus)
	@tests/clean-cache.sh
