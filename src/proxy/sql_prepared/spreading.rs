//! An EXECUTE whose statement several shards read or write with these values: it runs as that statement does when a
//! client binds the values to it.
//!
//! What must stay true: a value is bound only where PostgreSQL would take the written one for the parameter's type, and
//! take it for the same.

use super::{
    super::{
        gather::Bound,
        prepared::Prepared,
        request::Stop,
        session::{Note, Phase, Session},
        spread::Writing,
    },
    readable,
    running::bound,
};
use crate::{
    plan::{Plan, Values},
    protocol::pipeline::{Origin, Request},
    sql::{
        executions::{Argument, Naming},
        statement::{Effect, Within},
    },
    wire::{
        frontend::{self, Bind, Named, put, put_bind, put_named, put_parse},
        notice::Notice,
        types,
    },
};
use std::sync::Arc;

/// `FirstNormalObjectId` of transam.h: types below it are the same on every server.
const FIRST_OWN_OID: u32 = 16384;
/// Types that take a number that is written as an integer, for the same.
const NUMBERS: [u32; 10] = [
    types::INT2,
    types::INT4,
    types::INT8,
    types::OID,
    types::FLOAT4,
    types::FLOAT8,
    types::NUMERIC,
    types::TEXT,
    types::BPCHAR,
    types::VARCHAR,
];

/// A statement with the values that an EXECUTE gives it.
#[derive(Debug)]
pub(in crate::proxy) struct Given {
    pub(in crate::proxy) statement: Arc<Prepared>,
    /// The types of its parameters, as they stand in Parse.
    types: Vec<u8>,
    /// The rest of a Bind, but for the formats of the result.
    parameters: Vec<u8>,
}

impl Given {
    /// The body of a Bind of this portal with these values, with the formats of the result as they stand in Bind.
    pub(in crate::proxy) fn body(&self, portal: &[u8], results: &[u8]) -> Vec<u8> {
        [portal, b"\0\0", &self.parameters, results].concat()
    }

    /// The statement, with its types known.
    pub(in crate::proxy) fn typed(&self) -> Prepared {
        let statement = &*self.statement;
        Prepared {
            id: statement.id,
            sent: statement.sent.clone(),
            text: statement.text.clone(),
            raw_types: self.types.clone().into(),
            types: statement.types.clone(),
            plan: Arc::clone(&statement.plan),
            slots: statement.slots.clone(),
            unnamed: statement.unnamed,
            meaning: statement.meaning,
            told: Arc::clone(&statement.told),
            computing: statement.computing.clone(),
            executes: None,
        }
    }
}

impl Session {
    /// What a text, an EXECUTE that stands alone, gives to which statement, when several shards may be asked with it.
    ///
    /// # Errors
    /// The session is over, or PostgreSQL does not take the statement.
    pub(in crate::proxy) async fn given(
        &mut self,
        text: &[u8],
        plan: &Plan,
    ) -> Result<Option<Given>, Stop> {
        let Some((statement, arguments)) = self.named_with(text, plan) else {
            return Ok(None);
        };
        let known = statement.told.raw_types().map(<[u8]>::to_vec);
        let types = match known {
            Some(types) => types,
            // What the batch has done on its backend would be committed.
            None if self.phase != Phase::Idle => return Ok(None),
            None => {
                self.reach_any(&statement).await?;
                self.parses(&statement.text, &statement.raw_types)
                    .await??
                    .types
            }
        };
        let oids: Vec<u32> = types
            .chunks_exact(4)
            .map(|oid| u32::from_be_bytes([oid[0], oid[1], oid[2], oid[3]]))
            .collect();
        let taken = oids.len() == arguments.len()
            && oids
                .iter()
                .zip(&arguments)
                .all(|(oid, value)| takes(*oid, value));
        let body = bound(&arguments);
        // Without the portal's and the statement's name, and the formats of the result.
        let parameters = body.get(2..body.len() - 2).unwrap_or_default().to_vec();
        Ok(taken.then_some(Given {
            statement,
            types,
            parameters,
        }))
    }

    fn named_with(&mut self, text: &[u8], plan: &Plan) -> Option<(Arc<Prepared>, Vec<Argument>)> {
        let [outer] = plan.statements.as_slice() else {
            return None;
        };
        let (text, mut named) = readable(text, plan)?;
        let named = named.pop()?;
        let Naming::Executes { name, arguments } = named.naming else {
            return None;
        };
        // A cast says how a value is read, which a parameter does not.
        let written = text.get(named.place.end..)?.to_ascii_lowercase();
        let plain = !written.contains("::") && !written.contains("cast");
        let itself = !matches!(outer.effect, Effect::Execute { within, .. } if within != Within::Itself)
            && text
                .get(..named.place.start)?
                .trim_ascii()
                .eq_ignore_ascii_case("execute");
        let statement = self.statement_now(&name)?;
        (plain && itself).then_some((statement, arguments))
    }

    /// Runs a Query that is an EXECUTE over several shards, or refuses it.
    ///
    /// # Errors
    /// It is refused; the session is over.
    pub(in crate::proxy) async fn query_given(
        &mut self,
        refused: Notice,
        text: &[u8],
        plan: &Plan,
    ) -> Result<(), Stop> {
        if self.phase != Phase::Idle || !self.pipeline.is_empty() {
            return Err(refused.into());
        }
        let Some(given) = self.given(text, plan).await? else {
            return Err(refused.into());
        };
        let prepared = given.typed();
        let body = given.body(b"", &[0, 0]);
        let bind = Bind::decode(&body).map_err(|_malformed| refused.clone())?;
        let values = Values {
            text: &prepared.text,
            slots: &prepared.slots,
            types: &prepared.types,
            bind: Some(&bind),
        };
        let bound = Bound {
            types: &prepared.raw_types,
            tail: Some(&bind),
        };
        let Some(statement) = prepared.statement() else {
            return Err(refused.into());
        };
        if let Some(shares) = self.spreads(statement, &values)?
            && let Some(writing) = Writing::bound(&prepared, shares, &bind)
        {
            let written = self.write(&writing).await;
            return self.conclude(written).await;
        }
        if let Some(scattered) = self.streams(&prepared.plan, &values)
            && self
                .query_scattered(&scattered, &prepared.text, &bound)
                .await?
        {
            return Ok(());
        }
        let Some(scatter) = self.scatters(&prepared.plan, &values) else {
            return Err(refused.into());
        };
        let answer = self.gather(&scatter, &prepared.text, &bound).await?;
        self.send_bound(&answer.text, &answer.types, &bind, &prepared.plan);
        Ok(())
    }

    /// Binds an EXECUTE over several shards, or refuses it.
    ///
    /// # Errors
    /// It is refused; the session is over.
    pub(in crate::proxy) async fn bind_given(
        &mut self,
        refused: Notice,
        prepared: &Prepared,
        bind: &Bind<'_>,
    ) -> Result<(), Stop> {
        let Some(given) = self.given(&prepared.text, &prepared.plan).await? else {
            return Err(refused.into());
        };
        let statement = Arc::new(given.typed());
        let body = given.body(bind.portal, bind.raw_results());
        let own = Bind::decode(&body).map_err(|_malformed| refused.clone())?;
        let values = Values {
            text: &statement.text,
            slots: &statement.slots,
            types: &statement.types,
            bind: Some(&own),
        };
        self.bind_shards(refused, &statement, &own, &values).await
    }

    /// Sends a statement with values to the link, whose answer is that of a Query.
    fn send_bound(&mut self, text: &str, types: &[u8], bind: &Bind<'_>, plan: &Plan) {
        let Some(link) = &mut self.link else {
            return;
        };
        let out = link.lease.stream.out();
        put_parse(out, b"", text.as_bytes(), types);
        put_bind(out, b"", b"", bind.tail);
        put_named(out, b'D', Named::Portal(b""));
        put(out, b'E', |out| out.extend_from_slice(&[0; 5]));
        frontend::put_bare(out, b'S');
        link.lease.unnamed = None;
        plan.statements.iter().for_each(|one| link.sends(one));
        for (request, origin) in [
            (Request::Parse, Origin::Injected),
            (Request::Bind, Origin::Injected),
            (Request::Describe, Origin::Client),
            (Request::Execute, Origin::Client),
            (Request::Sync, Origin::Client),
        ] {
            self.pipeline.asked(request, origin, Note::Nothing);
        }
        self.phase = Phase::Answering;
    }
}

/// Whether a parameter of this type takes the value as it is written, and for the same.
fn takes(oid: u32, value: &Argument) -> bool {
    match value {
        Argument::Null => true,
        Argument::Text(text) => {
            let digits = text.strip_prefix('-').unwrap_or(text);
            let number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            oid < FIRST_OWN_OID && (!number || NUMBERS.contains(&oid))
        }
        Argument::Computed => false,
    }
}
