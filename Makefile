# What a person types. Each goal sets up what it needs first (tests/setup/tools.sh).

.PHONY: help demo test unit cluster kills reshard-matrix mixed lint bench compare shards pauses reshard-latency takeovers fleet clients fuzz soak versions
.DEFAULT_GOAL := help

help: ## what can be done
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

demo: ## three throw-away PostgreSQL shards, a shop in them, and the proxy: prints a connection string
	@tests/setup/tools.sh build servers
	@[ -e target/debug/shardway ] || echo "building: minutes the first time, seconds later" >&2
	@cargo build --locked --quiet
	@exec target/debug/shardway demo $(ARGS)

test: ## everything that must hold, as CI runs it
	@tests/setup/test.sh

unit: ## only the unit tests
	@tests/setup/tools.sh build servers
	@cargo test --locked --lib --bins

cluster: ## only the tests on real PostgreSQL; ARGS="-- name" for one
	@tests/setup/tools.sh build servers clients
	@tests/setup/clients.sh
	@cargo test --locked --test cluster $(ARGS)

kills: ## every victim at every point of a commit over several shards, and two minutes of kills at any time
	@tests/setup/tools.sh build servers
	@SHARDWAY_KILLS=all cargo test --locked --features failpoints --test transactions -- --test-threads 2 $(ARGS)

reshard-matrix: ## who dies, freezes or is cut off at every point of a reshard, under load; PART=i/n, goes on where it was
	@tests/setup/tools.sh build servers
	@SHARDWAY_RESHARD_PART=$${PART:-1/1} SHARDWAY_RESHARD_FROZEN=$${FROZEN:-30} cargo test --locked --features failpoints \
		--test reshard -- --nocapture whatever_is_killed_at_whatever_point_until_a_finish $(ARGS)

mixed: ## proxies of two versions together, in the middle of a reshard too: BEFORE=COMMIT; ARGS="kinds" for other tests
	@tests/setup/tools.sh build servers
	@tests/setup/mixed.sh "$(BEFORE)" $(ARGS)

versions: ## a smaller set of tests on PostgreSQL 14 to 18: a table; ARGS="14 sessions" for a part
	@tests/setup/versions.sh $(ARGS)

lint: ## format and lints
	@tests/setup/tools.sh build
	@cargo fmt --check
	@cargo clippy --all-targets --locked -- -D warnings
	@cargo clippy --all-targets --locked --features failpoints -- -D warnings

bench: ## how fast the parts are: lexer, plan cache, frames, hashes
	@tests/setup/tools.sh build
	@cargo bench --locked $(ARGS)

compare: ## Shardway beside PgBouncer and HAProxy: a table
	@tests/setup/tools.sh build servers
	@benches/compare/run $(ARGS)

shards: ## what statements over several shards cost beside those on one: a table
	@tests/setup/tools.sh build servers
	@benches/shards/run $(ARGS)

pauses: ## how long statements wait while keys change owners: a table; ARGS="--cutovers 10 --clients 4" for a few
	@tests/setup/tools.sh build servers
	@benches/reshard/pauses $(ARGS)

reshard-latency: ## how long statements take in each state of a reshard, beside those without: a table; ARGS="--rounds 1 --rate 1000"
	@tests/setup/tools.sh build servers
	@benches/reshard/latency $(ARGS)

takeovers: ## how long a reshard stands still when the proxy that leads it is killed: a table; ARGS="--kills 3 --verbose"
	@tests/setup/tools.sh build servers
	@benches/reshard/takeovers $(ARGS)

fleet: ## many proxies before one catalog: what they cost its server, how soon all know of a change; PROXIES=200
	@tests/setup/tools.sh build servers
	@ulimit -n 16384 && SHARDWAY_FLEET=$${PROXIES:-200} SHARDWAY_FLEET_CHANGES=$${CHANGES:-20} \
		cargo test --locked --release --test recovery -- --nocapture many_proxies $(ARGS)

clients: ## third-party suites, directly and through the proxy: a table; ARGS="psycopg2 pg_regress" for some
	@tests/setup/tools.sh build servers clients
	@cargo build --locked --quiet
	@tests/clients/run.py $(ARGS)

fuzz: ## each fuzz target for a while; SECONDS_EACH=600
	@tests/setup/tools.sh build
	@tests/fuzz/run $(SECONDS_EACH)

soak: ## clients that die anywhere, for long; SHARDWAY_SOAK_CLIENTS=2000 SHARDWAY_SOAK_SECONDS=600 SHARDWAY_SOAK_SEED=
	@tests/setup/tools.sh build servers
	@ulimit -n 8192 && SHARDWAY_SOAK_CLIENTS=$${SHARDWAY_SOAK_CLIENTS:-2000} SHARDWAY_SOAK_SECONDS=$${SHARDWAY_SOAK_SECONDS:-600} \
		cargo test --locked --release --test soak -- --nocapture
