//! What a client sees of a session, message by message: the same script is sent to PostgreSQL and through the proxy in
//! each pool mode, with backends forced to alternate, and the answers must be the same.

#![cfg(test)]

mod accounts;
mod agreeing;
mod asking;
mod beginnings;
mod bytes;
mod cases;
mod changing;
mod client;
mod code;
mod copy;
mod copy_defaults;
mod copying;
mod cursors;
mod defaults;
mod dumps;
mod dying;
mod endings;
mod explaining;
mod extended;
mod gathered;
mod gathered_parts;
mod greetings;
mod harness;
mod heartbeat;
mod hostile;
mod ids;
mod limits;
mod listen;
mod migrating;
mod moving;
mod numbers;
mod pooling;
mod reaching;
mod resetting;
mod right;
mod scattered;
mod secrets;
mod settings;
mod sharded;
mod spread;
mod sql_prepared;
mod statements;
mod styles;
mod suites;
mod three;
mod transactions_over_shards;
mod types;
mod values;
mod views;
mod volume;
mod waiting;
mod wide;
mod within;
