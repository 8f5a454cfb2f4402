//! Statements of ours on the session's backend, of which the client sees nothing.

use super::{End, Session, broken, told};
use crate::{
    proxy::{database::Database, link::Link, reply::session as reply},
    wire::{
        backend::Status,
        frame,
        frontend::{put, put_query},
        notice::Words,
    },
};

impl Session {
    /// Runs a statement of ours on the link and reads its answer to the end; the client sees nothing of it.
    ///
    /// # Errors
    /// Outer: the backend is lost. Inner: the server's error, as the client may see it.
    pub(in crate::proxy) async fn prelude(&mut self, sql: &[u8]) -> Result<Result<(), Words>, End> {
        Ok(Box::pin(self.ask(sql)).await?.map(drop))
    }

    /// As [`Session::prelude`], and hands back the first value of the last row, if there is one that is text.
    ///
    /// # Errors
    /// As [`Session::prelude`].
    pub(in crate::proxy) async fn ask(
        &mut self,
        sql: &[u8],
    ) -> Result<Result<Option<String>, Words>, End> {
        self.marks.waits();
        let Some(link) = &mut self.link else {
            return Err(End::Client);
        };
        put_query(link.lease.stream.out(), sql);
        let (mut problem, mut value) = (None, None);
        loop {
            let Some(header) =
                frame::backend(link.lease.stream.buffered()).map_err(|error| broken(&error))?
            else {
                read_more(link, &self.database).await?;
                continue;
            };
            let buffered = link.lease.stream.buffered();
            if buffered.len() < header.size {
                read_more(link, &self.database).await?;
                continue;
            }
            let body = &buffered[frame::HEADER..header.size];
            let mut ready = false;
            match header.tag {
                b'E' => problem = problem.or_else(|| Some(Words::Servers(body.to_vec()))),
                b'D' => value = first_value(body),
                b'N' if self.welcoming => {
                    // About what the client started with: PostgreSQL tells it before the session begins.
                    put(self.client.out(), b'N', |out| out.extend_from_slice(body));
                }
                b'Z' => {
                    link.status = Status::decode(body).map_err(|error| broken(&error))?;
                    ready = true;
                }
                b'S' => {
                    if let Ok((name, value)) = crate::wire::backend::parameter_status(body) {
                        let (name, value) = (name.to_vec(), value.to_vec());
                        link.lease.reported.set(&name, &value);
                    }
                }
                _ => {}
            }
            link.lease.stream.consume(header.size);
            if ready {
                // A simple query ends the unnamed statement.
                link.lease.unnamed = None;
                return Ok(problem.map_or(Ok(value), Err));
            }
        }
    }
}

pub(in crate::proxy) async fn read_more(link: &mut Link, database: &Database) -> Result<(), End> {
    let lost = || told(reply::backend_lost(database.shard_name(link.shard)));
    let stream = &mut link.lease.stream;
    let flushed = stream.flush().await.is_ok();
    if !flushed || stream.fill().await.unwrap_or(0) == 0 {
        return Err(lost());
    }
    Ok(())
}

/// The first column of a DataRow, when it is text.
pub(in crate::proxy) fn first_value(body: &[u8]) -> Option<String> {
    let mut body = frame::Body::new(body);
    body.u16().ok()?;
    let value = body.value().ok()??;
    String::from_utf8(value.to_vec()).ok()
}
