//! Users that the file does not list, or whose verifier it does not give: looked up on the database's home shard by the
//! control role (`auth_query`).
//!
//! What must stay true: nothing of a client reaches the connection that looks up but its name, as a parameter; whoever
//! is not found, or cannot be looked up, does not enter, least of all as somebody else; and strangers with many names
//! cost a server one connection and this process a bounded memory.

use super::{LoginContext, way::Way};
use crate::{
    auth::{Account, Demand, Stored, scram::Verifier},
    clock::{Clock, Duration, Instant},
    config::settings::{
        AuthQuery, BackendProof, ClientAuth, Credentials, Database, Secret, Settings, User,
    },
    net::{
        backend::{self, ConnectError, Connected},
        tls::ClientTls,
    },
    protocol::client_startup::{Entry, Refusal},
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{sync::Mutex as Turn, time::timeout as within};

/// Names that are remembered, found or not.
const MOST_KEPT: usize = 10_000;
/// Bytes of the longest name that is looked up: four times what PostgreSQL keeps of one as it is usually built. Nobody has
/// a longer one, and strangers have them kept.
const LONGEST_NAME: usize = 255;
/// How long nobody asks again after a server could not be asked.
const PAUSE: Duration = Duration::from_secs(1);
/// The database to ask in where the client's name would decide it: roles are the same in every one.
const ANY_DATABASE: &str = "postgres";
/// Told at startup, over whatever the role or the database says.
const PARAMETERS: &[(&str, &str)] = &[
    ("application_name", "shardway"),
    ("client_encoding", "UTF8"),
    ("search_path", "pg_catalog"),
    ("default_transaction_read_only", "on"),
];

/// Where the users of each database are looked up.
#[derive(Default)]
pub(super) struct Lookups {
    by_database: BTreeMap<String, Arc<Lookup>>,
    wildcard: Option<Arc<Lookup>>,
}

/// Why a name could not be looked up.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the server said {}", String::from_utf8_lossy(.0.message()))]
    Server(backend::ServerError),
    #[error("a lookup failed a moment ago")]
    Paused,
    /// Neither no row nor one of a name and its stored password.
    #[error(
        "auth_query must give at most one row, of the name that was asked for and its stored password"
    )]
    Answer,
    /// Neither a SCRAM verifier nor an MD5 hash.
    #[error("auth_query gave a password in a form that PostgreSQL does not store")]
    Form,
}

/// Who wants to enter: listed, found, or nobody.
pub(super) struct Candidate {
    /// With what was found for it.
    pub(super) user: Option<Arc<User>>,
    /// How those prove themselves whom the lookup finds.
    model: Option<Arc<User>>,
    /// To forget what was found, should the proof be wrong.
    looked_up: Option<(Arc<Lookup>, String)>,
}

impl Candidate {
    /// What must be shown by this way. Who was not found is asked for what others are who are looked up.
    ///
    /// # Errors
    /// [`Refusal`] as the way has it; when a password that is passed on would travel in clear.
    pub(super) fn demand(
        &self,
        context: &LoginContext,
        way: Way<'_>,
        entry: &Entry,
        encrypted: bool,
    ) -> Result<(Demand, Account), Refusal> {
        let demand = match (&self.user, &self.model, way) {
            (None, Some(model), Way::Own) => {
                let mock = Verifier::mock(&entry.user, context.entrance.secret());
                let demand = if model.auth == ClientAuth::FoundPassword {
                    Demand::Password(Stored::Scram(Arc::new(mock)))
                } else {
                    Demand::Scram(Arc::new(mock))
                };
                (demand, Account::Mock)
            }
            (user, ..) => context.demand(way, &entry.user, user.as_deref())?,
        };
        let passes = self
            .model
            .as_ref()
            .or(self.user.as_ref())
            .is_some_and(|user| user.backend_proof == BackendProof::Shown);
        if matches!(demand.0, Demand::Password(_)) && passes && !encrypted {
            return Err(Refusal::TlsRequired {
                user: entry.user.clone(),
                database: entry.database.clone(),
            });
        }
        Ok(demand)
    }

    /// The proof was wrong: perhaps the password has changed since it was looked up.
    pub(super) fn failed(&self) {
        if let Some((lookup, name)) = &self.looked_up {
            lookup.kept().remove(name);
        }
    }
}

impl Lookups {
    pub(super) fn new(settings: &Settings, tls: &Arc<ClientTls>, clock: Clock) -> Self {
        let lookup = |database: &Arc<Database>| {
            let query = database.auth_query.clone()?;
            Some(Arc::new(Lookup::new(database, query, tls, clock)))
        };
        Self {
            by_database: settings
                .databases
                .iter()
                .filter_map(|(name, database)| Some((name.clone(), lookup(database)?)))
                .collect(),
            wildcard: settings.wildcard.as_ref().and_then(lookup),
        }
    }

    /// Where users of this database are looked up.
    fn of(&self, context: &LoginContext, database: &[u8]) -> Option<&Arc<Lookup>> {
        let name = std::str::from_utf8(database).ok()?;
        if context.databases.contains(name) {
            self.by_database.get(name)
        } else if name == super::CONSOLE {
            None
        } else {
            self.wildcard.as_ref()
        }
    }
}

/// Whether a server may have to be asked for who wants to enter.
pub(super) fn is_looked_up(listed: Option<&Arc<User>>) -> bool {
    listed.is_none_or(|user| matches!(user.auth, ClientAuth::Found | ClientAuth::FoundPassword))
}

/// Finds out who wants to enter.
///
/// # Errors
/// [`Refusal::Lookup`] when the server could not be asked.
pub(super) async fn candidate(
    context: &LoginContext,
    entry: &Entry,
    listed: Option<&Arc<User>>,
) -> Result<Candidate, Refusal> {
    let not_looked_up = |user: Option<&Arc<User>>| Candidate {
        user: user.cloned(),
        model: None,
        looked_up: None,
    };
    if !is_looked_up(listed) {
        return Ok(not_looked_up(listed));
    }
    let lookup = context.lookups.of(context, &entry.database);
    let (Some(lookup), Ok(name)) = (lookup, std::str::from_utf8(&entry.user)) else {
        return Ok(not_looked_up(None));
    };
    let model = listed.unwrap_or(&context.found_users);
    let stored = lookup.find(name).await.map_err(|error| {
        tracing::warn!(database = %lookup.database, %error, "cannot look up a user");
        Refusal::Lookup
    })?;
    Ok(Candidate {
        user: stored.map(|stored| Arc::new(found_user(model, name, stored))),
        model: Some(Arc::clone(model)),
        looked_up: Some((Arc::clone(lookup), name.to_owned())),
    })
}

/// Who was found is itself, with what was found; whatever else is as for everybody who is found.
fn found_user(model: &User, name: &str, stored: Secret) -> User {
    let auth = match (&model.auth, Stored::read(&stored.0)) {
        (ClientAuth::FoundPassword, _) => ClientAuth::Password(stored),
        (_, Stored::Md5(_)) => ClientAuth::Md5(stored),
        (_, Stored::Scram(_) | Stored::Plain(_)) => ClientAuth::Scram(stored),
    };
    let backend = match model.backend_proof {
        BackendProof::Shown => Credentials {
            user: name.to_owned(),
            password: None,
        },
        BackendProof::Configured => model.backend.clone(),
    };
    User {
        name: name.to_owned(),
        auth,
        backend,
        ..model.clone()
    }
}

/// Looks users of one database up.
pub(super) struct Lookup {
    database: String,
    settings: Arc<Database>,
    query: AuthQuery,
    tls: Arc<ClientTls>,
    clock: Clock,
    /// One at a time.
    connection: Turn<Connection>,
    kept: Mutex<HashMap<String, Kept>>,
}

/// What the server answered; the connection goes on whatever it is.
type Answer = Result<Option<Secret>, LookupError>;

/// The connection that asks. Taken out while in use: who leaves in the middle leaves nothing half read.
enum Connection {
    Closed,
    Open(Box<Connected>),
    Paused(Instant),
}

/// What was found, and until when that is believed.
struct Kept {
    stored: Option<Secret>,
    until: Instant,
}

impl Lookup {
    fn new(database: &Arc<Database>, query: AuthQuery, tls: &Arc<ClientTls>, clock: Clock) -> Self {
        Self {
            database: database.name.clone(),
            settings: Arc::clone(database),
            query,
            tls: Arc::clone(tls),
            clock,
            connection: Turn::new(Connection::Closed),
            kept: Mutex::default(),
        }
    }

    /// The stored password of a role that may log in.
    async fn find(&self, name: &str) -> Result<Option<Secret>, LookupError> {
        if name.len() > LONGEST_NAME {
            return Ok(None);
        }
        if let Some(found) = self.recall(name) {
            return Ok(found);
        }
        let mut connection = self.connection.lock().await;
        // Somebody with the same name may have been first.
        if let Some(found) = self.recall(name) {
            return Ok(found);
        }
        let now = self.clock.now();
        let open = match std::mem::replace(&mut *connection, Connection::Closed) {
            Connection::Paused(until) if now < until => {
                *connection = Connection::Paused(until);
                return Err(LookupError::Paused);
            }
            Connection::Paused(_) | Connection::Closed => None,
            Connection::Open(open) => Some(open),
        };
        match self.ask(open, name).await {
            Ok((open, found)) => {
                *connection = Connection::Open(open);
                drop(connection);
                let found = found?;
                self.keep(name, found.clone());
                Ok(found)
            }
            // Not for what an answer says: a name could be chosen that keeps others out.
            Err(error) => {
                *connection = Connection::Paused(self.clock.now() + PAUSE);
                Err(error.into())
            }
        }
    }

    /// Asks on the open connection; on a new one if there is none or the server has closed it.
    async fn ask(
        &self,
        open: Option<Box<Connected>>,
        name: &str,
    ) -> Result<(Box<Connected>, Answer), ConnectError> {
        if let Some(mut open) = open
            && let Ok(found) = self.ask_on(&mut open, name).await
        {
            return Ok((open, found));
        }
        let home = &self.settings.shards[self.settings.snapshot.home.index()].primary;
        let database = match home.database.as_str() {
            "" => ANY_DATABASE,
            database => database,
        };
        let timeout = self.settings.pool.connect_timeout;
        let control = &self.query.control;
        let opened =
            backend::connect(home, database, control, PARAMETERS, timeout, &self.tls).await?;
        let mut open = Box::new(opened);
        let found = self.ask_on(&mut open, name).await?;
        Ok((open, found))
    }

    async fn ask_on(&self, open: &mut Connected, name: &str) -> Result<Answer, ConnectError> {
        let asked = backend::rows(&mut open.transport, &self.query.sql, name);
        let rows = within(self.settings.pool.connect_timeout, asked)
            .await
            .unwrap_or(Err(ConnectError::Timeout))?;
        Ok(match rows.map_err(LookupError::Server) {
            Ok(rows) => match &rows[..] {
                [] => Ok(None),
                [row] => read(row, name),
                _ => Err(LookupError::Answer),
            },
            Err(error) => Err(error),
        })
    }

    fn recall(&self, name: &str) -> Option<Option<Secret>> {
        let kept = self.kept();
        let found = kept.get(name)?;
        (self.clock.now() < found.until).then(|| found.stored.clone())
    }

    fn keep(&self, name: &str, stored: Option<Secret>) {
        let now = self.clock.now();
        let mut kept = self.kept();
        if kept.len() >= MOST_KEPT {
            kept.retain(|_, found| now < found.until);
        }
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        let until = now + self.query.cache;
        kept.insert(name.to_owned(), Kept { stored, until });
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, HashMap<String, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The one row: the name itself, and what is stored for it. Who has no password cannot enter with one.
fn read(row: &[Option<Vec<u8>>], name: &str) -> Result<Option<Secret>, LookupError> {
    let [Some(found), stored] = row else {
        return Err(LookupError::Answer);
    };
    // PostgreSQL cuts names that are too long: whose row it is is not who asks.
    if found != name.as_bytes() {
        return Ok(None);
    }
    let Some(stored) = stored else {
        return Ok(None);
    };
    let text = std::str::from_utf8(stored).map_err(|_not_text| LookupError::Form)?;
    match Stored::read(text) {
        Stored::Plain(_) => Err(LookupError::Form),
        Stored::Md5(_) | Stored::Scram(_) => Ok(Some(Secret(text.to_owned()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::load::load_str;
    use std::path::Path;

    #[test]
    fn a_row_is_believed_only_when_it_is_of_the_name_and_of_a_stored_form() {
        let verifier = Verifier::of(b"x", b"salt", 4096).text();
        let row = |cells: &[Option<&str>]| -> Vec<Option<Vec<u8>>> {
            let cell = |text: &Option<&str>| text.map(|text| text.as_bytes().to_vec());
            cells.iter().map(cell).collect()
        };
        let found = |cells: &[Option<&str>]| match read(&row(cells), "ann") {
            Ok(Some(_)) => "found",
            Ok(None) => "nobody",
            Err(LookupError::Answer) => "answer",
            Err(_) => "form",
        };
        assert_eq!(found(&[Some("ann"), Some(&verifier)]), "found");
        let md5 = format!("md5{}", "0".repeat(32));
        assert_eq!(found(&[Some("ann"), Some(&md5)]), "found");
        assert_eq!(found(&[Some("ann"), None]), "nobody");
        assert_eq!(found(&[Some("bob"), Some(&verifier)]), "nobody");
        assert_eq!(found(&[None, Some(&verifier)]), "answer");
        assert_eq!(found(&[Some("ann")]), "answer");
        assert_eq!(found(&[Some("ann"), Some(&verifier), None]), "answer");
        assert_eq!(found(&[Some("ann"), Some("in clear")]), "form");
        assert_eq!(found(&[Some("ann"), Some("")]), "form");
    }

    #[tokio::test]
    async fn a_name_that_no_role_can_have_is_neither_asked_for_nor_kept() {
        let nobody_there = "[databases.app]\nauth_query = true\n\
             control = { user = \"control\", password = \"x\" }\n\
             shards.s0 = { primary = \"postgres://127.0.0.1:1/app\" }\n";
        let settings = load_str("shardway.toml", nobody_there, Path::new("."));
        let settings = settings.unwrap_or_else(|errors| panic!("{errors}"));
        let tls = Arc::new(ClientTls::new().unwrap());
        let lookups = Lookups::new(&settings, &tls, Clock);
        let lookup = &lookups.by_database["app"];
        let longest = "x".repeat(LONGEST_NAME);
        let asked = lookup.find(&longest).await;
        assert!(matches!(asked, Err(LookupError::Connect(_))));
        let found = lookup.find(&format!("{longest}x")).await;
        assert!(matches!(found, Ok(None)));
        assert!(lookup.kept().is_empty());
    }
}
