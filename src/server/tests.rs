//! The life of a process, with sessions that do nothing: admission, panics, reloads, the drain.

use super::{Bound, Foundation, Reload, ServeError, Service, Serving, run};
use crate::{
    admin::{Console, command::Shutdown},
    clock::{Clock, Duration},
    config::settings::{Listen, LogFormat, Server, ServerTls, Settings, TlsMode},
    metrics::sessions::{CancelKeyLength, NewSession, Peer, Transport as Encryption},
    net::transport::Transport,
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinHandle,
};

/// Answers `hello`, panics at `p`, and stays until asked to end.
struct Greeter {
    foundation: Foundation,
    console: Arc<OnceLock<Arc<Console>>>,
}

impl Service for Greeter {
    fn serve(self: Arc<Self>, mut socket: Transport) -> Serving {
        Box::pin(async move {
            let session = self.foundation.metrics.sessions.register(NewSession {
                user: "u".into(),
                database: "d".into(),
                peer: Peer::Unix,
                application_name: String::new(),
                tls: Encryption::Plain,
                protocol: CancelKeyLength::Four,
                replication: None,
                now: Clock.now(),
                wall: Clock.wall(),
            });
            socket.write_all(b"hello").await.expect("the client reads");
            tokio::select! {
                byte = socket.read_u8() => assert_ne!(byte.ok(), Some(b'p'), "asked to panic"),
                () = session.asked() => socket.write_all(b"bye").await.expect("the client reads"),
            }
        })
    }

    fn turn_away(self: Arc<Self>, mut socket: Transport) -> Serving {
        Box::pin(async move { socket.write_all(b"full").await.expect("the client reads") })
    }

    fn apply(&self, settings: Arc<Settings>) -> Result<(), String> {
        if settings.server.max_clients == 0 {
            Err("nobody could enter".to_owned())
        } else {
            Ok(())
        }
    }

    fn learn(self: Arc<Self>, _settings: Arc<Settings>) -> Serving {
        Box::pin(async {})
    }

    fn maintain(&self) {}

    fn plan_caches(&self) -> Vec<(String, crate::plan::cache::Stats)> {
        Vec::new()
    }

    fn set_console(&self, console: Arc<Console>) {
        assert!(self.console.set(console).is_ok(), "set once");
    }
}

fn settings(max_clients: usize) -> Settings {
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    let server = Server {
        listen: vec![Listen::Tcp(any)],
        http: Some(any),
        tls: ServerTls {
            mode: TlsMode::Disable,
            identity: None,
            clients: None,
        },
        max_clients,
        max_logins: 100,
        failed_logins: 0,
        failed_login_delay: Duration::from_secs(1),
        login_timeout: Duration::from_secs(10),
        id: None,
        peers: BTreeMap::new(),
        shutdown_timeout: Duration::from_secs(10),
        workers: 1,
        plan_cache_bytes: 0,
        gather_limit: 0,
        gather_limit_total: 0,
        log_format: LogFormat::Text,
        log_level: "info".to_owned(),
    };
    Settings {
        server,
        databases: BTreeMap::new(),
        wildcard: None,
        rules: None,
        users: BTreeMap::new(),
        found_users: Arc::new(crate::config::settings::User::found()),
    }
}

struct Process {
    bound: Bound,
    console: Arc<Console>,
    running: JoinHandle<Result<(), ServeError>>,
}

async fn started(max_clients: usize, reload: Reload) -> Process {
    let console = Arc::new(OnceLock::new());
    let (told, ready) = oneshot::channel();
    let for_service = Arc::clone(&console);
    let build = move |foundation: &Foundation| {
        Ok(Arc::new(Greeter {
            foundation: foundation.clone(),
            console: for_service,
        }))
    };
    #[expect(clippy::disallowed_methods, reason = "the test plays the process")]
    let running = tokio::spawn(run(settings(max_clients), reload, build, |bound| {
        drop(told.send(bound));
    }));
    let bound = ready.await.expect("it serves");
    let console = Arc::clone(console.get().expect("handed over before serving"));
    Process {
        bound,
        console,
        running,
    }
}

impl Process {
    async fn client(&self) -> TcpStream {
        let Listen::Tcp(address) = self.bound.listen[0] else {
            panic!("a TCP listener")
        };
        TcpStream::connect(address).await.expect("it listens")
    }

    async fn get(&self, path: &str) -> String {
        let mut socket = TcpStream::connect(self.bound.http.expect("HTTP is on"))
            .await
            .expect("it listens");
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        socket.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        socket.read_to_string(&mut answer).await.expect("answered");
        answer
    }
}

async fn hears(socket: &mut TcpStream, text: &str) {
    let mut heard = vec![0; text.len()];
    socket.read_exact(&mut heard).await.expect("an answer");
    assert_eq!(String::from_utf8_lossy(&heard), text);
}

async fn is_closed(socket: &mut TcpStream) {
    assert_eq!(
        socket.read(&mut [0; 8]).await.unwrap_or(0),
        0,
        "the connection is closed"
    );
}

fn same() -> Reload {
    Arc::new(|| Ok(settings(2)))
}

#[tokio::test]
async fn a_panic_ends_its_client_only_and_is_counted() {
    let process = started(10, same()).await;
    let (mut good, mut bad) = (process.client().await, process.client().await);
    hears(&mut good, "hello").await;
    hears(&mut bad, "hello").await;
    bad.write_all(b"p").await.expect("sent");
    is_closed(&mut bad).await;
    let page = process.get("/metrics").await;
    assert!(page.contains("\nshardway_panics_total 1\n"), "{page}");
    assert!(
        page.contains(r#"shardway_clients{database="d",user="u",state="idle"} 1"#),
        "{page}"
    );
    let mut next = process.client().await;
    hears(&mut next, "hello").await;
}

#[tokio::test]
async fn a_drain_ends_idle_sessions_then_the_process_and_is_not_ready_meanwhile() {
    let process = started(10, same()).await;
    assert!(process.get("/readyz").await.ends_with("ready\n"));
    assert!(process.get("/livez").await.ends_with("live\n"));
    let mut client = process.client().await;
    hears(&mut client, "hello").await;
    process.console.control.shutdown(Shutdown::Drain);
    hears(&mut client, "bye").await;
    process
        .running
        .await
        .expect("no panic")
        .expect("it ends well");
    let Listen::Tcp(address) = process.bound.listen[0] else {
        panic!("a TCP listener")
    };
    assert!(
        TcpStream::connect(address).await.is_err(),
        "nobody listens any more"
    );
}

#[tokio::test]
async fn clients_beyond_the_limit_are_told_so() {
    let process = started(1, same()).await;
    let mut first = process.client().await;
    hears(&mut first, "hello").await;
    let mut second = process.client().await;
    hears(&mut second, "full").await;
    assert!(
        process
            .get("/metrics")
            .await
            .contains("\nshardway_connections_turned_away_total 1\n")
    );
}

#[tokio::test]
async fn a_reload_that_fails_leaves_everything_as_it_was() {
    let process = started(10, Arc::new(|| Ok(settings(0)))).await;
    assert_eq!(
        process.console.control.reload(),
        Err("nobody could enter".to_owned())
    );
    assert_eq!(process.console.settings.load().server.max_clients, 10);
    let process = started(10, same()).await;
    assert_eq!(process.console.control.reload(), Ok(()));
    assert_eq!(process.console.settings.load().server.max_clients, 2);
}
