//! A client's login: encryption, startup packet, proof, database; all of it under one deadline. What
//! `protocol::client_startup` and `auth` decide is carried out here. Reads are exact, so no byte is read ahead
//! when encryption begins or the session takes over, and a stranger is given no more memory than his message needs.
//!
//! After AuthenticationOk the session speaks: ParameterStatus, BackendKeyData, ReadyForQuery, or an error.

mod context;
mod entrance;
mod failures;
mod lookup;
mod prove;
mod read;
mod way;

pub use context::LoginContext;
pub use entrance::{Entrance, Place};

use super::transport::Transport;
use crate::{
    auth::scram::Proof,
    clock::Duration,
    config::settings::User,
    protocol::client_startup::{self, Channel, Entry, ExpectPacket, Refusal, Step, TlsOffer},
    wire::startup::{Replication, Setting},
};
use prove::Entered;
use read::{Received, read_packet};
use std::{
    io,
    pin::{Pin, pin},
    sync::Arc,
};
use tokio::{
    io::AsyncWriteExt as _,
    time::{Sleep, sleep, timeout},
};

/// The database that is the console.
pub const CONSOLE: &str = "shardway";
/// How TLS's handshake record begins: TLS without an SSLRequest.
const TLS_HANDSHAKE: u8 = 0x16;
/// How long a refused client may take to read why.
const FAREWELL: Duration = Duration::from_secs(1);

/// What became of a login.
#[derive(Debug)]
pub enum Login {
    Session(Session),
    Cancel {
        pid: u32,
        key: Vec<u8>,
        /// To be closed when the request has been carried out.
        transport: Transport,
    },
    /// The client left, perhaps to come back with a password.
    Closed,
}

/// A client that has shown who he is: AuthenticationOk is sent, nothing else, and nothing of him is read ahead.
#[derive(Debug)]
pub struct Session {
    pub transport: Transport,
    pub user: Arc<User>,
    /// A configured database, one of the wildcard, or the console.
    pub database: String,
    /// What opens the user's backends, where that is what the client has shown.
    pub shown: Option<Proof>,
    /// `None`: an ordinary connection.
    pub replication: Option<Replication>,
    /// Settings in the order of their effect, later ones win.
    pub parameters: Vec<Setting>,
    /// The minor version of protocol 3 agreed on.
    pub minor: u16,
}

/// Why nobody entered. The client has been told what it may know.
#[derive(Debug, thiserror::Error)]
pub enum LoginError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("TLS: {0}")]
    Tls(io::Error),
    #[error(transparent)]
    Refused(Refusal),
}

/// What the first packets led to.
enum Opened {
    Enter(Transport, Entry),
    Refused(Transport, Refusal),
    Over(Login),
}

/// Logs a client in, within the settings' `login_timeout` and as long as it has its place.
///
/// # Errors
/// [`LoginError`]: the connection is closed.
pub async fn login(
    transport: Transport,
    mut place: Place,
    context: &LoginContext,
) -> Result<Login, LoginError> {
    tokio::select! {
        biased;
        done = attempt(transport, context) => done,
        () = place.lost() => Err(LoginError::Refused(Refusal::Evicted)),
    }
}

async fn attempt(transport: Transport, context: &LoginContext) -> Result<Login, LoginError> {
    let mut deadline = pin!(sleep(context.timeout));
    // PostgreSQL says nothing either to who does not send a startup packet in time.
    let opened = match before(deadline.as_mut(), open(transport, context)).await {
        Some(opened) => opened?,
        None => return Err(LoginError::Refused(Refusal::Timeout)),
    };
    let (mut transport, entry) = match opened {
        Opened::Enter(transport, entry) => (transport, entry),
        Opened::Refused(transport, refusal) => return Err(refuse(transport, refusal).await),
        Opened::Over(login) => return Ok(login),
    };
    let entered = before(deadline, prove::enter(&mut transport, &entry, context)).await;
    match entered.unwrap_or(Err(LoginError::Refused(Refusal::Timeout))) {
        Ok(Received::Whole(Entered {
            user,
            database,
            shown,
        })) => {
            let Entry {
                minor,
                settings,
                replication,
                ..
            } = entry;
            Ok(Login::Session(Session {
                transport,
                user,
                database,
                shown,
                replication,
                parameters: settings,
                minor,
            }))
        }
        Ok(Received::Closed) => Ok(Login::Closed),
        Err(LoginError::Refused(refusal)) => Err(refuse(transport, refusal).await),
        Err(error @ (LoginError::Io(_) | LoginError::Tls(_))) => Err(error),
    }
}

/// What `work` gives, unless the deadline comes first.
async fn before<T>(deadline: Pin<&mut Sleep>, work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        () = deadline => None,
    }
}

/// Encryption and the startup packet.
async fn open(mut transport: Transport, context: &LoginContext) -> Result<Opened, LoginError> {
    let offer = context.offer(&transport);
    let mut state = ExpectPacket::new(offer, Channel::Plain);
    if let (Transport::Tcp(stream), Some(tls)) = (&transport, &context.tls)
        && offer != TlsOffer::Off
    {
        let mut first = [0];
        if stream.peek(&mut first).await? == 1 && first[0] == TLS_HANDSHAKE {
            transport = transport
                .accept_tls(tls.config())
                .await
                .map_err(LoginError::Tls)?;
            if transport.alpn().is_none() {
                return Ok(Opened::Refused(transport, Refusal::Alpn));
            }
            state = ExpectPacket::new(offer, Channel::Encrypted);
        }
    }
    loop {
        let packet = match read_packet(&mut transport).await? {
            Ok(Received::Whole(packet)) => packet,
            Ok(Received::Closed) => return Ok(Opened::Over(Login::Closed)),
            Err(refusal) => return Ok(Opened::Refused(transport, refusal)),
        };
        match state.handle_packet(&packet) {
            Ok(Step::Answer(answer, next)) => {
                if !transport.is_encrypted() && transport.has_plain_bytes()? {
                    return Ok(Opened::Refused(transport, Refusal::UnencryptedData));
                }
                transport.write_all(&[answer]).await?;
                transport.flush().await?;
                state = next;
            }
            Ok(Step::Handshake(next)) => {
                if transport.has_plain_bytes()? {
                    return Ok(Opened::Refused(transport, Refusal::UnencryptedData));
                }
                let Some(tls) = &context.tls else {
                    return Err(LoginError::Tls(io::ErrorKind::Unsupported.into()));
                };
                transport.write_all(b"S").await?;
                transport = transport
                    .accept_tls(tls.config())
                    .await
                    .map_err(LoginError::Tls)?;
                state = next;
            }
            Ok(Step::Cancel { pid, key }) => {
                return Ok(Opened::Over(Login::Cancel {
                    pid,
                    key,
                    transport,
                }));
            }
            Ok(Step::Enter(entry)) => return Ok(Opened::Enter(transport, entry)),
            Err(refusal) => return Ok(Opened::Refused(transport, refusal)),
        }
    }
}

/// Tells the client why, as far as it may know, and closes.
async fn refuse(mut transport: Transport, refusal: Refusal) -> LoginError {
    if let Some(notice) = client_startup::refusal(&refusal) {
        let mut out = Vec::new();
        notice.put(&mut out);
        let farewell = async {
            transport.write_all(&out).await?;
            transport.flush().await?;
            transport.shutdown().await
        };
        // Whether it arrives changes nothing: the client is refused.
        let _told = timeout(FAREWELL, farewell).await;
    }
    LoginError::Refused(refusal)
}
#[cfg(test)]
mod tests;
