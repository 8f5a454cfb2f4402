//! SHOW CLIENTS, SERVERS, PINS: who is connected.

use super::{Cell, Table, seconds_and_micros, wall};
use crate::{
    admin::{Console, Now},
    clock::Duration,
    metrics::sessions::{BackendInfo, BackendState, Peer, SessionInfo, SessionState, Transport},
    wire::startup::Replication,
};

/// PgBouncer's columns of clients and servers alike.
const CONNECTION: [&str; 21] = [
    "type",
    "user",
    "database",
    "replication",
    "state",
    "addr",
    "port",
    "local_addr",
    "local_port",
    "connect_time",
    "request_time",
    "wait",
    "wait_us",
    "close_needed",
    "ptr",
    "link",
    "remote_pid",
    "tls",
    "application_name",
    "prepared_statements",
    "id",
];
const NUMBERS: [&str; 10] = [
    "port",
    "local_port",
    "wait",
    "wait_us",
    "close_needed",
    "remote_pid",
    "prepared_statements",
    "id",
    "queries",
    "transactions",
];

pub(super) fn clients(console: &Console, now: Now) -> Table {
    let columns: Vec<_> = CONNECTION
        .into_iter()
        .chain(["in_transaction", "shard", "pin", "queries", "transactions"])
        .collect();
    let mut table = Table::new(&columns, &NUMBERS);
    for session in console.metrics.sessions.list() {
        table.row(client(console, &session, now));
    }
    table
}

fn client(console: &Console, session: &SessionInfo, now: Now) -> Vec<Cell> {
    let (address, port) = peer(session.peer);
    let [wait, wait_us] =
        seconds_and_micros(session.waited(now.monotonic).unwrap_or(Duration::ZERO));
    let backend = session.backend();
    let shard = backend.map(|(shard, _)| {
        let settings = console.settings.load();
        let named = settings
            .databases
            .get(&*session.database)
            .and_then(|database| database.shards.get(usize::from(shard)));
        named.map_or_else(|| shard.to_string(), |shard| shard.name.clone())
    });
    vec![
        "C".into(),
        (*session.user).into(),
        (*session.database).into(),
        replication_word(session.replication).into(),
        client_state(session).into(),
        address.into(),
        port.into(),
        Cell::Null,
        Cell::Null,
        wall(session.connected_wall).into(),
        wall(session.last_request_wall()).into(),
        wait,
        wait_us,
        0_u64.into(),
        format!("{:x}", session.pid).into(),
        backend
            .map_or_else(String::new, |(_, pid)| format!("{pid:x}"))
            .into(),
        0_u64.into(),
        tls_cell(session.tls),
        session.application_name().into(),
        session.prepared().into(),
        session.pid.into(),
        if session.in_transaction() {
            "yes"
        } else {
            "no"
        }
        .into(),
        shard.into(),
        session.pin().into(),
        session
            .queries
            .load(std::sync::atomic::Ordering::Relaxed)
            .into(),
        session
            .transactions
            .load(std::sync::atomic::Ordering::Relaxed)
            .into(),
    ]
}

/// PgBouncer says active of every client that does not wait; we tell idle ones apart.
fn client_state(session: &SessionInfo) -> &'static str {
    match session.state() {
        SessionState::Waiting => "waiting",
        SessionState::Held => "held",
        SessionState::Active => "active",
        SessionState::Idle => "idle",
    }
}

pub(super) fn servers(console: &Console) -> Table {
    let columns: Vec<_> = CONNECTION.into_iter().chain(["shard"]).collect();
    let mut table = Table::new(&columns, &NUMBERS);
    for backend in console.metrics.backends.list() {
        table.row(server(&backend));
    }
    table
}

fn server(backend: &BackendInfo) -> Vec<Cell> {
    vec![
        "S".into(),
        (*backend.user).into(),
        (*backend.database).into(),
        replication_word(backend.replication).into(),
        state_word(backend.state()).into(),
        (*backend.host).into(),
        backend.port.into(),
        Cell::Null,
        Cell::Null,
        wall(backend.connected_wall).into(),
        Cell::Null,
        0_u64.into(),
        0_u64.into(),
        u64::from(backend.state() == BackendState::Closing).into(),
        format!("{:x}", backend.number).into(),
        backend
            .session()
            .map_or_else(String::new, |pid| format!("{pid:x}"))
            .into(),
        backend.pid().into(),
        tls_cell(backend.tls()),
        "".into(),
        backend.prepared().into(),
        backend.number.into(),
        (*backend.shard).into(),
    ]
}

fn state_word(state: BackendState) -> &'static str {
    match state {
        BackendState::Login => "login",
        BackendState::Idle => "idle",
        BackendState::Active => "active",
        BackendState::Used => "used",
        BackendState::Closing => "close_needed",
    }
}

pub(super) fn pins(console: &Console) -> Table {
    let mut table = Table::new(
        &["id", "user", "database", "application_name", "pin"],
        &["id"],
    );
    for session in console.metrics.sessions.list() {
        if let Some(reason) = session.pin() {
            table.row([
                session.pid.into(),
                (*session.user).into(),
                (*session.database).into(),
                session.application_name().into(),
                reason.into(),
            ]);
        }
    }
    table
}

fn replication_word(replication: Option<Replication>) -> &'static str {
    match replication {
        None => "none",
        Some(Replication::Logical) => "logical",
        Some(Replication::Physical) => "physical",
    }
}

fn peer(peer: Peer) -> (String, u16) {
    match peer {
        Peer::Tcp(address) => (address.ip().to_string(), address.port()),
        Peer::Unix => ("unix".to_owned(), 0),
    }
}

fn tls_cell(transport: Transport) -> Cell {
    match transport {
        Transport::Plain => "".into(),
        Transport::Tls => "TLS".into(),
    }
}
