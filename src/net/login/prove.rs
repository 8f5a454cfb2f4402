//! A client's proof of who it is, then the database that it named. Nobody without an account comes to its end.

use super::{
    super::transport::Transport,
    LoginContext, LoginError,
    failures::Verdict,
    read::{Received, read_message},
};
use crate::{
    auth::{AuthError, Exchange, Fresh, Reply},
    config::settings::User,
    entropy,
    protocol::client_startup::{self, Entry, Refusal},
};
use std::sync::Arc;
use tokio::{io::AsyncWriteExt as _, time::sleep};

/// The proof, then the database.
pub(super) async fn enter(
    transport: &mut Transport,
    entry: &Entry,
    context: &LoginContext,
) -> Result<Received<(Arc<User>, String)>, LoginError> {
    let user = std::str::from_utf8(&entry.user)
        .ok()
        .and_then(|name| context.users.get(name));
    let (demand, account) = context.demand(&entry.user, user.map(Arc::as_ref));
    let mut out = entry.negotiation.clone();
    let fresh = Fresh {
        salt: entropy::bytes(),
        nonce: entropy::bytes(),
    };
    let attempt = context.entrance.attempt(transport.peer(), &entry.user);
    let mut proof = None;
    let end_point = context
        .tls
        .as_ref()
        .filter(|_| transport.is_encrypted())
        .and_then(|tls| tls.end_point());
    let begun = Exchange::begin(&entry.user, demand, account, fresh, end_point);
    if let Some((mut exchange, ask)) = begun {
        // Before the proof is asked for: whoever waits learns nothing by it.
        match context.entrance.verdict(attempt, context.limits) {
            Verdict::Now => {}
            Verdict::After(wait) => sleep(wait).await,
            Verdict::Refused(wait) => {
                return Err(LoginError::Refused(Refusal::Throttled {
                    user: entry.user.clone(),
                    seconds: wait.as_secs() + 1,
                }));
            }
        }
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
                Ok(Reply::Accepted(data, _)) => {
                    context.entrance.succeeded(attempt);
                    break data;
                }
                Err(AuthError::Wrong) => {
                    context.entrance.failed(attempt, context.limits);
                    return Err(LoginError::Refused(Refusal::Password {
                        user: entry.user.clone(),
                    }));
                }
                Err(error) => return Err(LoginError::Refused(Refusal::Authentication(error))),
            }
        };
    }
    // Nobody without an account comes this far: their exchange fails.
    let Some(user) = user else {
        return Err(LoginError::Refused(Refusal::Password {
            user: entry.user.clone(),
        }));
    };
    client_startup::put_accepted(&mut out, proof);
    transport.write_all(&out).await?;
    transport.flush().await?;
    let database = context
        .admit(user, entry.database.clone())
        .map_err(LoginError::Refused)?;
    Ok(Received::Whole((Arc::clone(user), database)))
}
