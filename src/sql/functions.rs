//! What PostgreSQL's own functions do to more than their result, known by their names. Pure.
//!
//! `functions.txt` lists `pg_catalog` (of PostgreSQL 15, and what 16 to 18 added): `i`, `s` or `v`, the most volatile
//! of a name's overloads, then the name. A volatile function is refused on no particular shard unless it is in
//! `HARMLESS`.

use std::{collections::HashMap, sync::LazyLock};

/// What a function does besides computing its result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing, or nothing that matters where it runs.
    Plain,
    /// Uses what exists once per database: the home shard.
    Home(Keeps),
    /// Uses large objects: those of the home shard, unless a shard is named.
    LargeObject,
    /// Changes something on its server, or means something on one shard only.
    OneShard,
    /// Runs SQL that stands in its arguments.
    RunsSql,
    /// Changes a setting.
    Setting,
    /// Not PostgreSQL's own.
    Unknown,
}

/// Whether a function leaves something in the session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeps {
    Nothing,
    SessionLock,
}

/// Volatile by their nature, not by what they change: any shard may compute them.
const HARMLESS: [&str; 45] = [
    "array_sample",
    "array_shuffle",
    "clock_timestamp",
    "current_query",
    "gen_random_uuid",
    "pg_blocking_pids",
    "pg_collation_actual_version",
    "pg_control_checkpoint",
    "pg_control_init",
    "pg_control_recovery",
    "pg_control_system",
    "pg_current_logfile",
    "pg_current_wal_flush_lsn",
    "pg_current_wal_insert_lsn",
    "pg_current_wal_lsn",
    "pg_database_collation_actual_version",
    "pg_database_size",
    "pg_get_backend_memory_contexts",
    "pg_get_shmem_allocations",
    "pg_hba_file_rules",
    "pg_indexes_size",
    "pg_is_in_recovery",
    "pg_is_wal_replay_paused",
    "pg_jit_available",
    "pg_last_wal_receive_lsn",
    "pg_last_wal_replay_lsn",
    "pg_last_xact_replay_timestamp",
    "pg_lock_status",
    "pg_partition_ancestors",
    "pg_partition_tree",
    "pg_prepared_xact",
    "pg_relation_size",
    "pg_sequence_last_value",
    "pg_show_all_file_settings",
    "pg_sleep",
    "pg_sleep_for",
    "pg_sleep_until",
    "pg_table_size",
    "pg_tablespace_size",
    "pg_total_relation_size",
    "random",
    "random_normal",
    "timeofday",
    "uuidv4",
    "uuidv7",
];

/// Aggregates and window functions of `pg_catalog`, PostgreSQL 18's among them.
const OVER_ROWS: [&str; 64] = [
    "any_value",
    "array_agg",
    "avg",
    "bit_and",
    "bit_or",
    "bit_xor",
    "bool_and",
    "bool_or",
    "corr",
    "count",
    "covar_pop",
    "covar_samp",
    "cume_dist",
    "dense_rank",
    "every",
    "first_value",
    "json_agg",
    "json_agg_strict",
    "json_object_agg",
    "json_object_agg_strict",
    "json_object_agg_unique",
    "json_object_agg_unique_strict",
    "jsonb_agg",
    "jsonb_agg_strict",
    "jsonb_object_agg",
    "jsonb_object_agg_strict",
    "jsonb_object_agg_unique",
    "jsonb_object_agg_unique_strict",
    "lag",
    "last_value",
    "lead",
    "max",
    "min",
    "mode",
    "nth_value",
    "ntile",
    "percent_rank",
    "percentile_cont",
    "percentile_disc",
    "range_agg",
    "range_intersect_agg",
    "rank",
    "regr_avgx",
    "regr_avgy",
    "regr_count",
    "regr_intercept",
    "regr_r2",
    "regr_slope",
    "regr_sxx",
    "regr_sxy",
    "regr_syy",
    "row_number",
    "stddev",
    "stddev_pop",
    "stddev_samp",
    "string_agg",
    "sum",
    "var_pop",
    "var_samp",
    "variance",
    "xmlagg",
    "json_arrayagg",
    "json_objectagg",
    "grouping",
];

/// Whether a function of `pg_catalog` computes over several rows: an aggregate or a window function.
#[must_use]
pub fn computes_over_rows(name: &str) -> bool {
    OVER_ROWS.contains(&name)
}

static VOLATILITY: LazyLock<HashMap<&'static str, u8>> = LazyLock::new(|| {
    include_str!("functions.txt")
        .lines()
        .filter_map(|line| Some((line.get(2..)?, *line.as_bytes().first()?)))
        .collect()
});

/// What a function of `pg_catalog` does; [`Class::Unknown`] when there is none of that name.
#[must_use]
pub fn classify(name: &str) -> Class {
    if let Some(rest) = name
        .strip_prefix("pg_try_")
        .or_else(|| name.strip_prefix("pg_"))
    {
        match rest {
            "advisory_lock" | "advisory_lock_shared" => return Class::Home(Keeps::SessionLock),
            "notify" => return Class::Home(Keeps::Nothing),
            _ if rest.starts_with("advisory_") => return Class::Home(Keeps::Nothing),
            _ => {}
        }
    }
    let Some(volatility) = VOLATILITY.get(name) else {
        return Class::Unknown;
    };
    if name == "set_config" {
        return Class::Setting;
    }
    if name.starts_with("lo_") || name == "loread" || name == "lowrite" {
        return Class::LargeObject;
    }
    if name.contains("_to_xml") || name == "ts_stat" || name == "ts_rewrite" {
        return Class::RunsSql;
    }
    match volatility {
        b'v' if !HARMLESS.contains(&name) && !name.starts_with("pg_stat_get_") => Class::OneShard,
        _ => Class::Plain,
    }
}

/// Whether all functions of `pg_catalog` with this name, of which there are some, give the same always and everywhere.
#[must_use]
pub fn is_immutable(name: &str) -> bool {
    VOLATILITY.get(name) == Some(&b'i')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn functions_are_known_by_what_they_change() {
        for name in HARMLESS {
            assert_eq!(classify(name), Class::Plain, "{name}");
        }
        assert_eq!(classify("lower"), Class::Plain);
        assert_eq!(classify("now"), Class::Plain);
        assert_eq!(classify("nextval"), Class::OneShard);
        assert_eq!(classify("query_to_xml"), Class::RunsSql);
        assert_eq!(classify("table_to_xmlschema"), Class::RunsSql);
        assert_eq!(
            classify("pg_try_advisory_lock"),
            Class::Home(Keeps::SessionLock)
        );
        assert_eq!(
            classify("pg_advisory_xact_lock"),
            Class::Home(Keeps::Nothing)
        );
        assert_eq!(classify("lo_import"), Class::LargeObject);
        assert_eq!(classify("order_total"), Class::Unknown);
    }
}
