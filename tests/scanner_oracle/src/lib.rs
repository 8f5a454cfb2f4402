//! Compares shardway's lexer with PostgreSQL's own scanner, over PostgreSQL's regression statements and mutations of
//! them. The lexer's file is included, not linked: shardway's parser and `pg_query` export the same C symbols.

#[path = "../../../src/sql/normalize.rs"]
pub mod normalize;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod oracle;
