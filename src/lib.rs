//! Shardway: a sharding proxy for PostgreSQL.
//!
//! The modules in layer order; a module names only modules of lower layers (`tests/tidy.rs` holds it).
//! The data plane answers one statement; the control plane changes what is true; they meet in the catalog
//! snapshot and the gate. `docs/architecture.md` draws the whole.

// Layer 0: what everything may use.
pub mod clock;
pub mod entropy;
pub mod failpoint;
pub mod sql;
pub mod wire;
// Layer 1: what lives where, and who may enter.
pub mod auth;
pub mod catalog;
// Layer 2: rules of one connection, settings, counters, rows of several shards.
pub mod config;
pub mod merge;
pub mod metrics;
pub mod protocol;
pub mod split;
// Layer 3: sockets, and where a statement goes.
pub mod gate;
pub mod net;
pub mod plan;
// Layer 4: backends to lease, databases to look into, changes to follow.
pub mod inspect;
pub mod pool;
pub mod replication;
// Layer 5 and 6: what the proxies share on the servers, transactions over several shards, resharding.
pub mod registry;
pub mod reshard;
pub mod txn;
// Layer 7 to 10: console, sessions, the composition root, commands.
pub mod admin;
pub mod cli;
pub mod proxy;
pub mod sandbox;
pub mod server;
