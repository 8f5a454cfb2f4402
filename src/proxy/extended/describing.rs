//! Describe: of a portal or a statement, answered here or where it is.

use crate::{
    plan::Target,
    protocol::pipeline::{Origin, Request},
    proxy::{
        local::put_explanation_columns,
        prepared::Prepared,
        reply::session as reply,
        request::Stop,
        session::{Note, Portal, Session},
    },
    wire::frontend::{Named, put},
};
use std::sync::Arc;

impl Session {
    pub(in crate::proxy) async fn describe(
        &mut self,
        frame: &[u8],
        body: &[u8],
    ) -> Result<(), Stop> {
        let named = Named::decode(body).map_err(|_malformed| reply::malformed())?;
        self.settle_effects().await?;
        if self.skip {
            return Ok(());
        }
        match named {
            Named::Portal(portal) => self.describe_portal(frame, portal).await,
            Named::Statement(name) => self.describe_statement(name).await,
        }
    }

    async fn describe_portal(&mut self, frame: &[u8], portal: &[u8]) -> Result<(), Stop> {
        self.flush_pending().await?;
        if let Some(columns) = self.columns_over_shards(portal) {
            let mut out = Vec::new();
            put(&mut out, b'T', |out| out.extend_from_slice(columns));
            self.made(out, Note::Nothing);
            return Ok(());
        }
        if let Some(Portal::Here(prepared)) = self.portals.get(portal) {
            let mut out = Vec::new();
            describe_here(prepared, &mut out);
            self.made(out, Note::Nothing);
            return Ok(());
        }
        if let Some(Portal::Copying(_)) = self.portals.get(portal) {
            self.made(vec![b'n', 0, 0, 0, 4], Note::Nothing);
            return Ok(());
        }
        if let Some(Portal::Writing(_)) = self.portals.get(portal) {
            return Box::pin(self.describe_spread(portal)).await;
        }
        if let Some(Portal::Cursor(command)) = self.portals.get(portal) {
            let mut out = Vec::new();
            self.describe_command(command, &mut out);
            self.made(out, Note::Nothing);
            return Ok(());
        }
        self.go_to_portal(portal).await?;
        if self.skip {
            return Ok(());
        }
        let note = match &self.bound {
            Some((name, prepared)) if **name == *portal => {
                Note::DescribedPortal(Arc::clone(prepared))
            }
            _ => Note::Nothing,
        };
        self.forward(frame, Request::Describe, note, || {
            reply::no_such_portal(portal)
        })
    }

    async fn describe_statement(&mut self, name: &[u8]) -> Result<(), Stop> {
        let prepared = self.prepared(name).await?;
        let prepared = self.executes_now(name, prepared)?;
        if prepared
            .statement()
            .is_some_and(|statement| self.answered_here(statement))
        {
            self.answer_pending().await?;
            let mut out = vec![b't', 0, 0, 0, 6, 0, 0];
            describe_here(&prepared, &mut out);
            self.made(out, Note::Nothing);
            return Ok(());
        }
        if prepared
            .statement()
            .is_some_and(|one| self.concerns_cursors(std::slice::from_ref(one)))
            && self.describe_fetch(&prepared).await?
        {
            return Ok(());
        }
        self.reach_any(&prepared).await?;
        self.send_pending();
        if let Err(stop) = self.make_fit_to_execute(&prepared).await {
            if let (Stop::Refused(_), Some(types)) = (&stop, prepared.told.raw_types()) {
                // As PostgreSQL, which finds out about the columns only after the parameters.
                let mut out = Vec::new();
                put(&mut out, b't', |out| {
                    let types = prepared.own_types(types);
                    let count = u16::try_from(types.len() / 4).unwrap_or(u16::MAX);
                    out.extend_from_slice(&count.to_be_bytes());
                    out.extend_from_slice(types);
                });
                self.made(out, Note::Nothing);
            }
            return Err(stop);
        }
        if !self.skip {
            self.send_describe(&prepared, Origin::Client);
        }
        Ok(())
    }
}

/// What a statement that is answered here returns: rows of text, or nothing.
fn describe_here(prepared: &Prepared, out: &mut Vec<u8>) {
    let explains = prepared
        .statement()
        .is_some_and(|statement| matches!(statement.target, Target::Explain(_)));
    if explains {
        put_explanation_columns(out);
    } else {
        out.extend_from_slice(&[b'n', 0, 0, 0, 4]);
    }
}
