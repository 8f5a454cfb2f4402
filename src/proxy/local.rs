//! What is answered here: transaction commands while no shard has been reached, the proxy's own settings, EXPLAIN
//! (ROUTE).

use super::{
    listening::Undone,
    prepared::Prepared,
    reply::{self as wording, session as reply},
    request::Stop,
    session::{Note, Session},
    several::snapshots,
};
use crate::{
    plan::{StatementPlan, Target, Values, explain::Description},
    protocol::transaction::Deferred,
    sql::statement::Effect,
    wire::{
        backend::{Status, put_complete},
        frontend::put,
        notice::Notice,
    },
};
use std::sync::Arc;

impl Session {
    /// Whether a statement is answered here: what concerns the proxy only always is, but in a failed transaction;
    /// transaction commands are while the session has no backend.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only the effects named here are answered here"
    )]
    pub(super) fn answered_here(&self, statement: &StatementPlan) -> bool {
        let ours = matches!(statement.target, Target::Explain(_))
            || own_setting(&statement.effect).is_some()
            || matches!(&statement.effect, Effect::Deallocate(Some(name)) if self.statements.contains_key(name.as_bytes()));
        if ours {
            return self
                .link
                .as_ref()
                .is_none_or(|link| link.status != Status::Failed);
        }
        if self.ends_several(statement) {
            return true;
        }
        if self.link.is_some() || self.snapshot.is_single() {
            return false;
        }
        match &statement.effect {
            Effect::Begin
            | Effect::Commit { .. }
            | Effect::Rollback { .. }
            | Effect::Savepoint(_)
            | Effect::Release(_)
            | Effect::RollbackTo(_)
            | Effect::SetTransaction => true,
            _ => self.deferred.as_ref().is_some_and(Deferred::failed),
        }
    }

    /// Answers a simple query here if every statement of it can be; true when it was.
    pub(super) fn query_here(
        &mut self,
        statements: &[StatementPlan],
        values: &Values<'_>,
    ) -> Result<bool, Stop> {
        // A SET of ours among others would change how those behind it are planned.
        let alone = |statement: &StatementPlan| {
            own_setting(&statement.effect).is_none() || statements.len() == 1
        };
        let all = statements
            .iter()
            .all(|statement| alone(statement) && self.answered_here(statement));
        if statements.is_empty() || !all {
            return Ok(false);
        }
        for statement in statements {
            let mut out = Vec::new();
            self.perform(statement, values, true, &mut out)?;
            self.client.out().extend_from_slice(&out);
        }
        self.ready_here();
        Ok(true)
    }

    /// Execute of a portal that is answered here.
    pub(super) fn execute_here(&mut self, prepared: &Arc<Prepared>) -> Result<(), Stop> {
        let Some(statement) = prepared.statement() else {
            return Ok(());
        };
        let values = Values {
            text: &prepared.text,
            slots: &prepared.slots,
            types: &prepared.types,
            bind: None,
        };
        let mut out = Vec::new();
        self.perform(statement, &values, false, &mut out)?;
        self.made(out, Note::Nothing);
        Ok(())
    }

    /// Does what the statement says and appends its answer, without ReadyForQuery.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "only the effects named here are answered here"
    )]
    fn perform(
        &mut self,
        statement: &StatementPlan,
        values: &Values<'_>,
        describe: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Notice> {
        self.tally.queries += 1;
        // A plan that is shared by template has another text's positions; such a statement stands alone in its text.
        let place = statement.start as usize..statement.end as usize;
        let text = values.text.get(place).unwrap_or(values.text);
        if self.deferred.as_ref().is_some_and(Deferred::failed)
            && !matches!(
                statement.effect,
                Effect::Commit { .. } | Effect::Rollback { .. } | Effect::RollbackTo(_)
            )
        {
            return Err(reply::transaction_failed());
        }
        if let Target::Explain(inner) = &statement.target {
            put_explanation(
                out,
                &crate::plan::explain::describe(inner, &self.snapshot, values),
                describe,
            );
            return Ok(());
        }
        if let Some((name, value)) = own_setting(&statement.effect) {
            let reset = matches!(statement.effect, Effect::Reset(_));
            return self.set_own(name, value, reset, out);
        }
        match &statement.effect {
            Effect::Begin => self.begin_here(text, out),
            Effect::Commit { chain } => self.end_here(Ending::Commit, *chain, out)?,
            Effect::Rollback { chain } => self.end_here(Ending::Rollback, *chain, out)?,
            Effect::Savepoint(name) => self.savepoint_here(name, text, out)?,
            Effect::Release(name) => self.release_here(name, out)?,
            Effect::RollbackTo(name) => self.rollback_to_here(name, out)?,
            Effect::SetTransaction => self.set_transaction_here(text, out),
            Effect::Deallocate(Some(name)) => {
                self.statements.remove(name.as_bytes());
                put_complete(out, b"DEALLOCATE");
            }
            _ => return Err(reply::transaction_failed()),
        }
        Ok(())
    }

    fn begin_here(&mut self, text: &[u8], out: &mut Vec<u8>) {
        if self.deferred.is_some() {
            reply::already_in_transaction().put(out);
        } else {
            self.deferred = Some(Deferred::begin(text));
            self.parameters.begin();
        }
        put_complete(
            out,
            if starts_with_word(text, "start") {
                b"START TRANSACTION"
            } else {
                b"BEGIN"
            },
        );
    }

    fn end_here(&mut self, ending: Ending, chain: bool, out: &mut Vec<u8>) -> Result<(), Notice> {
        let commit = ending == Ending::Commit;
        let tag: &[u8] = if commit { b"COMMIT" } else { b"ROLLBACK" };
        let Some(deferred) = self.deferred.take() else {
            if chain {
                return Err(reply::needs_transaction(if commit {
                    "COMMIT AND CHAIN"
                } else {
                    "ROLLBACK AND CHAIN"
                }));
            }
            reply::no_transaction().put(out);
            put_complete(out, tag);
            return Ok(());
        };
        let committed = commit && !deferred.failed();
        self.transaction_ends(committed);
        if chain {
            // The next comes to the gate by itself.
            self.leaves_gate();
            self.parameters.begin();
            self.deferred = Some(deferred.chain());
        }
        put_complete(out, if committed { b"COMMIT" } else { b"ROLLBACK" });
        Ok(())
    }

    fn savepoint_here(&mut self, name: &str, text: &[u8], out: &mut Vec<u8>) -> Result<(), Notice> {
        let deferred = self
            .deferred
            .as_mut()
            .ok_or_else(|| reply::needs_transaction("SAVEPOINT"))?;
        deferred.savepoint(name, text);
        self.parameters.savepoint(name);
        put_complete(out, b"SAVEPOINT");
        Ok(())
    }

    fn release_here(&mut self, name: &str, out: &mut Vec<u8>) -> Result<(), Notice> {
        let deferred = self
            .deferred
            .as_mut()
            .ok_or_else(|| reply::needs_transaction("RELEASE SAVEPOINT"))?;
        deferred
            .release(name)
            .map_err(|_missing| reply::no_such_savepoint(name))?;
        self.parameters.release(name);
        self.savepoint_of_listening(Undone::Kept);
        put_complete(out, b"RELEASE");
        Ok(())
    }

    fn rollback_to_here(&mut self, name: &str, out: &mut Vec<u8>) -> Result<(), Notice> {
        let deferred = self
            .deferred
            .as_mut()
            .ok_or_else(|| reply::needs_transaction("ROLLBACK TO SAVEPOINT"))?;
        deferred
            .rollback_to(name)
            .map_err(|_missing| reply::no_such_savepoint(name))?;
        self.parameters.rollback_to(name);
        self.savepoint_of_listening(Undone::Undone);
        self.context_stale = true;
        put_complete(out, b"ROLLBACK");
        Ok(())
    }

    fn set_transaction_here(&mut self, text: &[u8], out: &mut Vec<u8>) {
        let constraints = text
            .to_ascii_lowercase()
            .windows(11)
            .any(|window| window == b"constraints");
        let command = if constraints {
            "SET CONSTRAINTS"
        } else {
            "SET TRANSACTION"
        };
        match &mut self.deferred {
            Some(deferred) => deferred.setting(text),
            None => reply::only_in_transaction(command).put(out),
        }
        put_complete(
            out,
            if constraints {
                b"SET CONSTRAINTS"
            } else {
                b"SET"
            },
        );
    }

    /// SET shardway.…: the proxy's own settings never reach a server.
    fn set_own(
        &mut self,
        name: &str,
        value: Option<&str>,
        reset: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), Notice> {
        let value = value.map(unquoted).filter(|value| !value.is_empty());
        check_own(name, value.as_deref(), &self.snapshot.shards)?;
        match value {
            Some(value) => self.overridden.insert(name, value),
            None => self.overridden.remove(name),
        };
        self.context_stale = true;
        put_complete(out, if reset { b"RESET" } else { b"SET" });
        Ok(())
    }
}

/// The answer to EXPLAIN (ROUTE): one column, one line of text a row, as EXPLAIN's own.
fn put_explanation(out: &mut Vec<u8>, description: &Description, describe: bool) {
    if describe {
        put_explanation_columns(out);
    }
    let refused = description.refused.as_ref().map(|why| {
        let notice = wording::unroutable(why);
        [
            ("error", Some(notice.message)),
            ("detail", notice.detail),
            ("hint", notice.hint),
        ]
    });
    let mut row = |name: &str, value: &str| {
        let line = format!("{name}: {value}");
        put(out, b'D', |out| {
            out.extend_from_slice(&1_u16.to_be_bytes());
            out.extend_from_slice(&u32::try_from(line.len()).unwrap_or(0).to_be_bytes());
            out.extend_from_slice(line.as_bytes());
        });
    };
    for (name, value) in &description.rows {
        row(name, value);
    }
    for (name, value) in refused.into_iter().flatten() {
        if let Some(value) = value {
            row(name, &value);
        }
    }
    put_complete(out, b"EXPLAIN");
}

/// The row description of EXPLAIN: one text column named as PostgreSQL names it.
pub(super) fn put_explanation_columns(out: &mut Vec<u8>) {
    put(out, b'T', |out| {
        out.extend_from_slice(&1_u16.to_be_bytes());
        out.extend_from_slice(b"QUERY PLAN\0");
        out.extend_from_slice(&[0; 6]);
        out.extend_from_slice(&crate::wire::types::TEXT.to_be_bytes());
        out.extend_from_slice(&(-1_i16).to_be_bytes());
        out.extend_from_slice(&(-1_i32).to_be_bytes());
        out.extend_from_slice(&[0; 2]);
    });
}

/// How a client asks for its transaction to end.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ending {
    Commit,
    Rollback,
}

/// The proxy's own setting that a statement changes, and the SQL text of its new value.
#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "only the effects named here are answered here"
)]
pub(super) fn own_setting(effect: &Effect) -> Option<(&str, Option<&str>)> {
    match effect {
        Effect::Set { name, value, .. } if name.starts_with("shardway.") => {
            Some((name, value.as_deref()))
        }
        Effect::Reset(name) if name.starts_with("shardway.") => Some((name, None)),
        _ => None,
    }
}

/// Whether one of the proxy's own settings exists and takes this value.
pub(super) fn check_own(name: &str, value: Option<&str>, shards: &[String]) -> Result<(), Notice> {
    match (name, value) {
        ("shardway.shard", Some(shard)) if !shards.iter().any(|known| known == shard) => {
            Err(reply::bad_setting(
                name,
                format!(
                    "There is no shard \"{shard}\"; shards are {}.",
                    shards.join(", ")
                ),
            ))
        }
        ("shardway.shard" | "shardway.key", _) => Ok(()),
        (crate::failpoint::SETTING, _) if cfg!(feature = "failpoints") => Ok(()),
        (snapshots::SETTING, None | Some(snapshots::PER_SHARD)) => Ok(()),
        (snapshots::SETTING, Some(other)) => Err(reply::bad_setting(
            name,
            format!("\"{other}\" is not known; it is {}, or not set.", snapshots::PER_SHARD),
        )),
        ("shardway.role", Some("primary") | None) => Ok(()),
        ("shardway.role", Some(role)) => Err(reply::bad_setting(
            name,
            format!("Role \"{role}\" is not served yet: every statement goes to the primary."),
        )),
        _ => Err(reply::bad_setting(
            name,
            "Known settings are shardway.shard, shardway.key, shardway.read_consistency and shardway.role.".to_owned(),
        )),
    }
}

/// The string that a SQL constant stands for; an unquoted word stands for itself.
pub(super) fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = text
        .strip_prefix('\'')
        .and_then(|text| text.strip_suffix('\''));
    match inner {
        Some(inner) => inner.replace("''", "'"),
        None => match text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'))
        {
            Some(inner) => inner.replace("\"\"", "\""),
            None => text.to_owned(),
        },
    }
}

fn starts_with_word(text: &[u8], word: &str) -> bool {
    let mut rest = text.trim_ascii_start();
    loop {
        if let Some(comment) = rest.strip_prefix(b"--") {
            let end = comment
                .iter()
                .position(|byte| *byte == b'\n')
                .unwrap_or(comment.len());
            rest = comment[end..].trim_ascii_start();
        } else if let Some(comment) = rest.strip_prefix(b"/*") {
            let end = comment
                .windows(2)
                .position(|two| two == b"*/")
                .map_or(comment.len(), |at| at + 2);
            rest = comment[end..].trim_ascii_start();
        } else {
            return rest
                .get(..word.len())
                .is_some_and(|start| start.eq_ignore_ascii_case(word.as_bytes()));
        }
    }
}
