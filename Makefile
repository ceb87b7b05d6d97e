# `make up` to try it, `make test` before a change lands.
.PHONY: up cassandra test test-long lint doc bench fuzz

# Builds Weir, finds or fetches nats-server, starts both. ARGS="--config FILE --data DIR" for your own.
up:
	cargo build --release --locked
	@scripts/get-nats-server.sh >/dev/null
	@exec $${CARGO_TARGET_DIR:-target}/release/weir up $(ARGS)

# A real Cassandra for the archive, on 127.0.0.1:9042 until Ctrl-C; ARGS="--help" for what it can do.
cassandra:
	@exec scripts/cassandra.sh $(ARGS)

# Everything, in a few minutes; the last line is `N passed, N failed`.
test:
	@scripts/test.sh

# The same with the long tests whole: minutes of frozen servers, many kills, slow readers.
test-long:
	@WEIR_TEST_LONG=1 scripts/test.sh

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# Figures; docs/performance.md holds those of the last run that someone looked at.
bench:
	cargo build --release --locked
	@scripts/get-nats-server.sh >/dev/null
	@exec scripts/bench.sh

# FUZZ_SECONDS=600 for longer.
fuzz:
	@scripts/fuzz.sh
