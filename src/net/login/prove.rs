//! A client's proof of who it is, then the database that it named. Nobody without an account comes to its end.

use super::{
    super::transport::Transport,
    LoginContext, LoginError,
    failures::{Attempt, Verdict},
    lookup,
    read::{Received, read_message},
    way::check_certificate,
};
use crate::{
    auth::{Account, AuthError, Demand, Exchange, Fresh, Reply, scram::Proof},
    config::settings::{BackendProof, User},
    entropy,
    protocol::client_startup::{self, Entry, Refusal},
};
use std::sync::Arc;
use tokio::{io::AsyncWriteExt as _, time::sleep};

/// Who has entered.
pub(super) struct Entered {
    pub(super) user: Arc<User>,
    pub(super) database: String,
    /// What opens its backends (passthrough).
    pub(super) shown: Option<Proof>,
}

/// Whether an attempt has waited for its turn.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Turn {
    ToCome,
    Taken,
}

/// What the exchange ended with.
#[derive(Default)]
struct Proved {
    /// To be sent with its success.
    data: Option<Vec<u8>>,
    shown: Option<Proof>,
}

/// The proof, then the database.
pub(super) async fn enter(
    transport: &mut Transport,
    entry: &Entry,
    context: &LoginContext,
) -> Result<Received<Entered>, LoginError> {
    let listed = std::str::from_utf8(&entry.user)
        .ok()
        .and_then(|name| context.users.get(name));
    let refused = LoginError::Refused;
    let way = context
        .way(transport, entry, listed.map(Arc::as_ref))
        .map_err(refused)?;
    let attempt = context.entrance.attempt(transport.peer(), &entry.user);
    let mut turn = Turn::ToCome;
    if lookup::is_looked_up(listed) {
        // A server is not asked about a name for whoever has to wait.
        wait(attempt, &entry.user, context).await?;
        turn = Turn::Taken;
    }
    let candidate = lookup::candidate(context, entry, listed)
        .await
        .map_err(refused)?;
    let known = candidate.user.as_deref();
    let demand = candidate
        .demand(context, way, entry, transport.is_encrypted())
        .map_err(refused)?;
    let mut out = entry.negotiation.clone();
    let proved = prove(
        transport,
        &entry.user,
        demand,
        context,
        (attempt, turn),
        &mut out,
    )
    .await;
    if let Err(LoginError::Refused(Refusal::Password { .. })) = &proved {
        candidate.failed();
    }
    let Received::Whole(proved) = proved? else {
        return Ok(Received::Closed);
    };
    // Nobody without an account comes this far: their exchange fails.
    let Some(user) = candidate.user.clone() else {
        return Err(LoginError::Refused(Refusal::Password {
            user: entry.user.clone(),
        }));
    };
    check_certificate(way, transport, &entry.user, known).map_err(refused)?;
    client_startup::put_accepted(&mut out, proved.data);
    transport.write_all(&out).await?;
    transport.flush().await?;
    let database = context
        .database_meant(&user, entry)
        .and_then(|name| context.admit(&user, name, entry.replication))
        .map_err(LoginError::Refused)?;
    let passes = user.backend_proof == BackendProof::Shown;
    Ok(Received::Whole(Entered {
        user,
        database,
        shown: proved.shown.filter(|_| passes),
    }))
}

/// Holds the exchange that is demanded, beginning with what `out` holds.
async fn prove(
    transport: &mut Transport,
    user: &[u8],
    (demand, account): (Demand, Account),
    context: &LoginContext,
    (attempt, turn): (Attempt, Turn),
    out: &mut Vec<u8>,
) -> Result<Received<Proved>, LoginError> {
    let fresh = Fresh {
        salt: entropy::bytes(),
        nonce: entropy::bytes(),
    };
    let end_point = context
        .tls
        .as_ref()
        .filter(|_| transport.is_encrypted())
        .and_then(|tls| tls.end_point());
    let Some((mut exchange, ask)) = Exchange::begin(user, demand, account, fresh, end_point) else {
        return Ok(Received::Whole(Proved::default()));
    };
    if turn == Turn::ToCome {
        // Before the proof is asked for: whoever waits learns nothing by it.
        wait(attempt, user, context).await?;
    }
    client_startup::put_ask(out, ask);
    loop {
        transport.write_all(out).await?;
        transport.flush().await?;
        out.clear();
        let Received::Whole(body) = read_message(transport).await? else {
            return Ok(Received::Closed);
        };
        let handled = if exchange.takes_effort() {
            let work = move || exchange.handle_message(&body);
            context.entrance.effort.spend(work).await?
        } else {
            exchange.handle_message(&body)
        };
        match handled {
            Ok(Reply::Continue(next, data)) => {
                client_startup::put_continue(out, data);
                exchange = next;
            }
            Ok(Reply::Accepted(data, shown)) => {
                context.entrance.succeeded(attempt);
                return Ok(Received::Whole(Proved { data, shown }));
            }
            Err(AuthError::Wrong) => {
                context.entrance.failed(attempt, context.limits);
                let user = user.to_vec();
                return Err(LoginError::Refused(Refusal::Password { user }));
            }
            Err(error) => return Err(LoginError::Refused(Refusal::Authentication(error))),
        }
    }
}

/// Waits for the attempt's turn, when there were too many failures.
async fn wait(attempt: Attempt, user: &[u8], context: &LoginContext) -> Result<(), LoginError> {
    match context.entrance.verdict(attempt, context.limits) {
        Verdict::Now => Ok(()),
        Verdict::After(wait) => {
            sleep(wait).await;
            Ok(())
        }
        Verdict::Refused(wait) => Err(LoginError::Refused(Refusal::Throttled {
            user: user.to_vec(),
            seconds: wait.as_secs() + 1,
        })),
    }
}
