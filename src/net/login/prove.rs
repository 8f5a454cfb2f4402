//! A client's proof of who it is, then the database that it named. Nobody without an account comes to its end.

use super::{
    super::transport::Transport,
    LoginContext, LoginError,
    failures::{Attempt, Verdict},
    lookup,
    read::{Received, read_message},
};
use crate::{
    auth::{AuthError, Exchange, Fresh, Reply, scram::Proof},
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

/// The proof, then the database.
pub(super) async fn enter(
    transport: &mut Transport,
    entry: &Entry,
    context: &LoginContext,
) -> Result<Received<Entered>, LoginError> {
    let candidate = lookup::candidate(context, entry, transport.is_encrypted())
        .await
        .map_err(LoginError::Refused)?;
    let (demand, account) = (candidate.demand.clone(), candidate.account);
    let mut out = entry.negotiation.clone();
    let fresh = Fresh {
        salt: entropy::bytes(),
        nonce: entropy::bytes(),
    };
    let attempt = context.entrance.attempt(transport.peer(), &entry.user);
    let (mut proof, mut shown) = (None, None);
    let end_point = context
        .tls
        .as_ref()
        .filter(|_| transport.is_encrypted())
        .and_then(|tls| tls.end_point());
    let begun = Exchange::begin(&entry.user, demand, account, fresh, end_point);
    if let Some((mut exchange, ask)) = begun {
        take_turn(context, attempt, &entry.user).await?;
        client_startup::put_ask(&mut out, ask);
        proof = loop {
            transport.write_all(&out).await?;
            transport.flush().await?;
            out.clear();
            let Received::Whole(body) = read_message(transport).await? else {
                return Ok(Received::Closed);
            };
            match exchange.handle_message(&body) {
                Ok(Reply::Continue(next, data)) => {
                    client_startup::put_continue(&mut out, data);
                    exchange = next;
                }
                Ok(Reply::Accepted(data, proof)) => {
                    context.entrance.succeeded(attempt);
                    shown = proof;
                    break data;
                }
                Err(AuthError::Wrong) => {
                    context.entrance.failed(attempt, context.limits);
                    candidate.failed();
                    return Err(LoginError::Refused(Refusal::Password {
                        user: entry.user.clone(),
                    }));
                }
                Err(error) => return Err(LoginError::Refused(Refusal::Authentication(error))),
            }
        };
    }
    // Nobody without an account comes this far: their exchange fails.
    let Some(user) = candidate.user else {
        return Err(LoginError::Refused(Refusal::Password {
            user: entry.user.clone(),
        }));
    };
    client_startup::put_accepted(&mut out, proof);
    transport.write_all(&out).await?;
    transport.flush().await?;
    let database = context
        .admit(&user, entry.database.clone())
        .map_err(LoginError::Refused)?;
    let shown = shown.filter(|_| user.backend_proof == BackendProof::Shown);
    Ok(Received::Whole(Entered {
        user,
        database,
        shown,
    }))
}

/// Before the proof is asked for: whoever waits learns nothing by it.
async fn take_turn(
    context: &LoginContext,
    attempt: Attempt,
    user: &[u8],
) -> Result<(), LoginError> {
    match context.entrance.verdict(attempt, context.limits) {
        Verdict::Now => {}
        Verdict::After(wait) => sleep(wait).await,
        Verdict::Refused(wait) => {
            return Err(LoginError::Refused(Refusal::Throttled {
                user: user.to_vec(),
                seconds: wait.as_secs() + 1,
            }));
        }
    }
    Ok(())
}
