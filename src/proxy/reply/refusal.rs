//! Why a statement is not routed, in words: message, what of DETAIL comes before the code, and hint.
//!
//! Every refusal has words here; a hint that names nothing of the statement is the table's.

#![expect(
    clippy::wildcard_enum_match_arm,
    reason = "what has no wording of its own here has it in the table or below"
)]

use crate::{
    catalog::{
        effects::{Hazard, HazardKind},
        snapshot::{OWN_SCHEMA, Standing},
    },
    plan::unroutable::{KeyProblem, Undoubled, Unheld, Unroutable},
};

/// Message, and what of DETAIL comes before the code.
pub(super) fn message(why: &Unroutable) -> (String, String) {
    let text = |text: &str| text.to_owned();
    match why {
        Unroutable::Unsupported { feature } => (
            format!("{feature} is not supported over several shards"),
            text(
                "The statement would need more than one shard, or one that its text does not name.",
            ),
        ),
        Unroutable::Unpinned { table, key } => (
            format!("statement does not restrict \"{table}\" to one value of its shard key"),
            format!(
                "Rows of \"{table}\" are spread over shards by \"{key}\", and no predicate of the query block pins it."
            ),
        ),
        Unroutable::SeveralShards { shards } => (
            text("statement needs rows of several shards"),
            format!("Its tables and keys live on shards {}.", shards.join(", ")),
        ),
        Unroutable::ViewOverShards { view } => view_over_shards(view),
        Unroutable::UnknownTable { table } => (
            format!("relation \"{table}\" belongs to no group"),
            text("No group, reference table or single table has that name."),
        ),
        Unroutable::KeyMissing { table, key } | Unroutable::KeyNull { table, key } => (
            format!("null value in shard key \"{key}\" of relation \"{table}\""),
            match why {
                Unroutable::KeyNull { .. } => {
                    text("The row's shard key is NULL, so that it belongs to no shard.")
                }
                _ => text(
                    "The INSERT gives no value for the shard key, and defaults are not computed here.",
                ),
            },
        ),
        Unroutable::KeyExpression { table, key } => (
            format!(
                "shard key \"{key}\" of relation \"{table}\" is neither a constant nor a parameter"
            ),
            text("Only the value of a constant or a parameter is known before the statement runs."),
        ),
        Unroutable::KeyChanged { table, key } => (
            format!("statement may change shard key \"{key}\" of relation \"{table}\""),
            text("A row with another key may belong to another shard."),
        ),
        Unroutable::KeyValue { key, problem } => (
            format!("value cannot be used as shard key {key}"),
            problem_text(*problem),
        ),
        Unroutable::NoShardForKey { group } => (
            format!("no shard of group \"{group}\" holds this key"),
            text("The group's map lists neither the value nor a shard for all others."),
        ),
        Unroutable::ReferenceWrite { table } => (
            format!("writing to or locking reference table \"{table}\" is not supported"),
            text("Every shard holds a copy, and all copies would have to change together."),
        ),
        Unroutable::Function { name } => (
            format!("function {name} cannot be run without knowing the shard"),
            text("What it reads and changes is not visible in the statement."),
        ),
        Unroutable::PerShard { command } => (
            format!("{command} is not supported over several shards"),
            text("It would have to run on each shard."),
        ),
        _ => rare_message(why),
    }
}

/// What is refused because it cannot leave out rows that a shard does not own.
fn undoubled(what: Undoubled) -> &'static str {
    match what {
        Undoubled::Text => "a statement of this form over several shards is not supported",
        Undoubled::Hash => "a statement over several shards is not supported",
        Undoubled::CurrentOf => "WHERE CURRENT OF over several shards is not supported",
        Undoubled::MergeBySource => "WHEN NOT MATCHED BY SOURCE is not supported",
        Undoubled::ColumnAliases => {
            "a list of column aliases for a table whose columns are not known is not supported"
        }
        Undoubled::Conflict => {
            "ON CONFLICT on a table with a unique index that need not hold the shard key is not supported"
        }
        Undoubled::KeyOverride => {
            "a shard chosen by a key that the statement itself does not say is not supported"
        }
        Undoubled::View => {
            "a statement over several shards on a view that does not show the shard key is not supported"
        }
        Undoubled::Copy => "COPY of this relation is not supported",
        Undoubled::Action => {
            "a write that changes rows of other tables by a foreign key (ON DELETE, ON UPDATE) is not supported"
        }
        Undoubled::Moved => {
            "another shard key for a row of a table with a unique index without the key is not supported"
        }
        Undoubled::Referred => {
            "rows still refer to what would be gone, maybe only rows that another shard owns,"
        }
        Undoubled::Duplicate => {
            "a unique index without the shard key has such a row, maybe only one that another shard owns,"
        }
    }
}

fn map_unknown(standing: &Standing) -> (String, String) {
    let why = match standing {
        Standing::Known | Standing::Unread => {
            return (
                "the map of the shards was not read yet".to_owned(),
                "Which shard owns which keys is kept on the home shard, which this proxy has not been able to ask since it \
                 was started. SHOW SHARDS and the log say why."
                    .to_owned(),
            );
        }
        Standing::Lacking { shard } => format!(
            "The map that all proxies share names shard \"{shard}\", which this proxy's configuration does not have."
        ),
        Standing::Newer { shard, what } => format!(
            "Newer proxies keep on shard \"{shard}\" what this version does not understand: {what}."
        ),
        Standing::Behind { shard, seen, kept } => {
            let who = shard.as_ref().map_or_else(
                || "This proxy".to_owned(),
                |shard| format!("Shard \"{shard}\""),
            );
            if seen == kept {
                format!("{who} has seen another map {kept} than the home shard has.")
            } else {
                format!(
                    "{who} has seen map {seen}, and the home shard has map {kept}: it has lost what it had committed."
                )
            }
        }
    };
    (
        "what is on several shards is not served here".to_owned(),
        why,
    )
}

fn rare_message(why: &Unroutable) -> (String, String) {
    let text = |text: &str| text.to_owned();
    match why {
        Unroutable::MapDiffers { group } => (
            format!("group \"{group}\" is not served here"),
            text(
                "This proxy's configuration gives keys of the group to other shards than the map that all proxies share.",
            ),
        ),
        Unroutable::Doubled { group, what } => (
            format!(
                "{} while a reshard moves rows of group \"{group}\"",
                undoubled(*what)
            ),
            text(
                "Rows that move are on two shards until the reshard is finished, and only those of the shard that owns them count.",
            ),
        ),
        Unroutable::MapUnknown(standing) => map_unknown(standing),
        Unroutable::NotUtf8 => (
            text("statement is not UTF-8 text"),
            text(
                "Statements in other encodings are not analyzed, so that their shard is not known.",
            ),
        ),
        Unroutable::TooDeep => (
            text("statement is nested too deeply"),
            text("Its nesting is beyond what is analyzed."),
        ),
        Unroutable::ColumnsUnknown { table } => (
            format!("INSERT into \"{table}\" needs a column list"),
            text("The columns of the table are not known, so that the shard key's place is not."),
        ),
        Unroutable::Copy { table } => (
            format!("COPY of sharded table \"{table}\" is not supported over several shards"),
            text("Its rows are spread over shards."),
        ),
        Unroutable::PerShardObject { table, hazard } => per_shard_object(table, hazard),
        Unroutable::CannotHold { table, what } => cannot_hold(table, what),
        Unroutable::OverrideContradicts { named, keys } => (
            format!("override \"{named}\" contradicts the statement's own keys"),
            format!("Its tables and keys live on shard {keys}."),
        ),
        Unroutable::OverrideShard { shard } => (
            format!("there is no shard \"{shard}\""),
            text("The override names no shard of this database."),
        ),
        Unroutable::OverrideKey { key } => (
            format!("override key \"{key}\" cannot be used"),
            text(
                "It is no value of the group's key type, or it is not clear which group it belongs to.",
            ),
        ),
        _ => (
            text("statement is not understood"),
            text(
                "The grammar here does not know it, so that its shard is not known; where PostgreSQL does not know it either, its own error is given.",
            ),
        ),
    }
}

fn view_over_shards(view: &str) -> (String, String) {
    let why = "Its rows are not each shard's own, or its definition is not the same on all shards.";
    (
        format!("view \"{view}\" takes rows of several shards together"),
        why.to_owned(),
    )
}

/// What a table's own object would do on one shard only.
fn per_shard_object(table: &str, hazard: &Hazard) -> (String, String) {
    let name = &hazard.name;
    let why = match &hazard.kind {
        HazardKind::Trigger => format!(
            "Trigger \"{name}\" may change the shard key, or read or write rows that are on other shards."
        ),
        HazardKind::Rule => format!("Rule \"{name}\" rewrites the statement."),
        HazardKind::View => {
            "It is a view that shows more than one table's own columns, and writes through it are not followed.".to_owned()
        }
        HazardKind::Policy => {
            format!("Policy \"{name}\" looks at rows that may be on other shards.")
        }
        HazardKind::Unique(_) => format!(
            "Unique constraint or index \"{name}\" does not contain the shard key: the same values may be on another shard."
        ),
        HazardKind::Default => format!(
            "The default of \"{name}\" is made on each shard by itself: another shard may give the same value."
        ),
        HazardKind::Cascade(child) => format!(
            "Foreign key \"{name}\" would change \"{}.{}\" on one shard only.",
            child.schema, child.name
        ),
    };
    (
        format!("statement on table \"{table}\" would set off what acts on one shard only"),
        why,
    )
}

fn problem_text(problem: KeyProblem) -> String {
    match problem {
        KeyProblem::Malformed => "It is no value of the key's type.",
        KeyProblem::Ambiguous => "What it means depends on a setting of the session, or it is written in a form that is not read.",
        KeyProblem::Type => "Values of its type are not compared with the key exactly.",
    }
    .to_owned()
}

fn is_own(table: &str) -> bool {
    let schema = table.split_once('.').map(|(schema, _)| schema);
    schema == Some(OWN_SCHEMA)
}

/// A hint that names what the statement names; otherwise the table's is used.
pub(super) fn hint(why: &Unroutable) -> Option<String> {
    match why {
        Unroutable::Unpinned { table, key } => Some(format!(
            "Add a predicate such as {table}.{key} = $1 to the query block that reads {table}."
        )),
        Unroutable::Function { name } if name == "pg_export_snapshot" => Some(
            "Every shard has a snapshot of its own: run pg_dump without -j, or on one shard by shardway.shard.".to_owned(),
        ),
        Unroutable::UnknownTable { table } if is_own(table) => Some(
            "It is Shardway's own, on every shard for that shard alone: leave it out (pg_dump --exclude-schema=shardway), or name a shard by SET shardway.shard.".to_owned(),
        ),
        Unroutable::UnknownTable { table } => Some(format!(
            "Add \"{table}\" to a group, or to the reference or single tables, in the configuration; or set unlisted_tables."
        )),
        Unroutable::PerShardObject { table, hazard } => Some(per_shard_hint(table, hazard)),
        Unroutable::CannotHold { what, .. } => Some(cannot_hold_hint(what)),
        Unroutable::ColumnsUnknown { table } => {
            Some(format!("Write INSERT INTO {table} (column, …)."))
        }
        Unroutable::KeyMissing { key, .. } | Unroutable::KeyNull { key, .. } => {
            Some(format!("Give a value for \"{key}\" in the INSERT."))
        }
        _ => None,
    }
}

fn cannot_hold(table: &str, what: &Unheld) -> (String, String) {
    let (message, detail) = match what {
        Unheld::Unique { key } => (
            "a unique constraint needs the shard key",
            format!(
                "Rows of \"{table}\" are spread by \"{key}\": no shard sees whether another has the same values."
            ),
        ),
        Unheld::Reference { to } => (
            "a foreign key needs its rows on the same shard",
            format!("Rows of \"{to}\" that rows of \"{table}\" refer to may be on another shard."),
        ),
        Unheld::KeyColumn => (
            "the shard key's column stays as it is",
            format!("Rows of \"{table}\" are where its values say."),
        ),
        Unheld::NoKey { key } => (
            "a sharded table needs its shard key",
            format!("\"{table}\" would have no column \"{key}\"."),
        ),
        Unheld::KeyType { key, wanted } => (
            "the shard key is of another type than its group's",
            format!(
                "\"{table}\".\"{key}\" must be {wanted}, or a type that it is widened from, without a length."
            ),
        ),
        Unheld::Name => (
            "a table that the configuration lists keeps its name",
            format!("\"{table}\" would not be found under another."),
        ),
        Unheld::Claimed { column } => (
            "a table stays where its rows are",
            format!(
                "By column \"{column}\" a group would claim \"{table}\", whose rows are elsewhere."
            ),
        ),
        Unheld::Apart => (
            "tables that live in different places are changed one by one",
            format!("\"{table}\" and others of the statement are not on the same shards."),
        ),
        Unheld::Comment => (
            "the comment does not say where the table can live",
            format!(
                "It names no group or shard of this database, or \"{table}\" is listed elsewhere in the configuration."
            ),
        ),
    };
    (message.to_owned(), detail)
}

fn cannot_hold_hint(what: &Unheld) -> String {
    match what {
        Unheld::Unique { key } => format!("Make \"{key}\" part of it."),
        Unheld::Reference { .. } => "Make the shard keys part of it, with both tables in one group; or make the other table a reference table.".to_owned(),
        Unheld::KeyColumn => "Make a new table with the other column, and copy the rows.".to_owned(),
        Unheld::NoKey { key } => format!("Add the column \"{key}\"; or say where the table lives: /* shardway: group=NAME key=COLUMN */, /* shardway: reference */ or /* shardway: single=SHARD */."),
        Unheld::KeyType { wanted, .. } => format!("Declare it as {wanted}."),
        Unheld::Name => "Change the configuration, and rename the table on each shard: /* shardway: shard=NAME */ ALTER TABLE …".to_owned(),
        Unheld::Claimed { .. } => "Give the column another name, or move the rows: make a table with the column, copy them into it, and drop the other.".to_owned(),
        Unheld::Apart => "Write one statement for each.".to_owned(),
        Unheld::Comment => "Write /* shardway: group=NAME key=COLUMN */, /* shardway: reference */ or /* shardway: single=SHARD */.".to_owned(),
    }
}

fn per_shard_hint(table: &str, hazard: &Hazard) -> String {
    let name = &hazard.name;
    let remedy = match &hazard.kind {
        HazardKind::Default => format!("Give \"{name}\" a value; or let the sequences of the shards step over each other (ALTER SEQUENCE … INCREMENT BY <shards> START WITH <number of the shard> RESTART)"),
        HazardKind::Unique(_) => "Make the shard key part of it; or leave its column to a default that no other shard repeats (gen_random_uuid(), or sequences that step over each other)".to_owned(),
        HazardKind::View => return "Write to the tables themselves.".to_owned(),
        _ => "Let it keep to its own row".to_owned(),
    };
    format!(
        "{remedy}; or, when the application sees to it, list \"{table}.{name}\" in the database's per_shard."
    )
}
