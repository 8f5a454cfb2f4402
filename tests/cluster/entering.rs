//! Who enters while things change: certificates, passwords and rules are replaced by a reload that drops nobody, and
//! strangers who say nothing keep nobody out.

use crate::{
    harness::{Proxy, Recipe, block_on, get, open_session, shop, until},
    tls::certificates,
};
use shardway::sandbox::shop as names;
use std::{
    fs,
    io::{BufRead, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};
use tokio_postgres::error::SqlState;

const ASKED: &str = "SELECT name FROM customers WHERE id = 5;";

/// A psql that stays connected.
struct Conversation {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Conversation {
    fn begin(mut psql: Command) -> Self {
        let mut child = psql
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Self {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    /// One line of an answer.
    fn ask(&mut self, sql: &str) -> String {
        writeln!(self.input, "{sql}").unwrap();
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }
}

impl Drop for Conversation {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        self.child.wait().unwrap();
    }
}

fn psql(proxy: &Proxy, authority: &Path, sslmode: &str) -> Command {
    let mut command = Command::new("psql");
    proxy.target().apply(&mut command);
    command
        .env("PGSSLMODE", sslmode)
        .env("PGSSLROOTCERT", authority)
        .args(["-X", "-At"]);
    command
}

fn enters(mut psql: Command) -> bool {
    let output = psql.args(["-c", ASKED]).output().unwrap();
    output.stdout.starts_with(b"Fatima Perez\n")
}

/// A file of this test's own.
fn file(name: &str) -> PathBuf {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    shop().dir().join(format!("entering-{number}-{name}"))
}

/// Reloads and waits until that is done.
fn reload(proxy: &Proxy) {
    let count = || proxy.log().matches("configuration reloaded").count();
    let before = count();
    proxy.signal("HUP");
    until("the reload is told", || count() > before);
}

fn replace(proxy: &Proxy, from: &str, to: &str) {
    let text = fs::read_to_string(&proxy.config).unwrap();
    assert!(text.contains(from), "{text}");
    fs::write(&proxy.config, text.replace(from, to)).unwrap();
}

#[test]
fn a_new_certificate_is_shown_from_a_reload_on_and_drops_nobody() {
    let [old, new] = [certificates(&["localhost"]), certificates(&["localhost"])];
    let [cert, key, old_ca, new_ca] = ["crt", "key", "old", "new"].map(file);
    fs::write(&old_ca, &old.authority).unwrap();
    fs::write(&new_ca, &new.authority).unwrap();
    fs::write(&cert, &old.cert).unwrap();
    fs::write(&key, &old.key).unwrap();
    let proxy = shop().serve(&Recipe {
        server: format!(
            "tls = {{ mode = \"require\", cert = \"{}\", key = \"{}\" }}",
            cert.display(),
            key.display()
        ),
        ..Recipe::default()
    });
    // The name is in the certificate, the address is not.
    let psql = |authority: &Path| {
        let mut command = psql(&proxy, authority, "verify-full");
        command.env("PGHOST", "localhost");
        command.env("PGCHANNELBINDING", "require");
        command
    };
    let mut staying = Conversation::begin(psql(&old_ca));
    assert_eq!(staying.ask(ASKED), "Fatima Perez");
    fs::write(&cert, &new.cert).unwrap();
    // Half of a pair is refused as a whole: the old one stays.
    proxy.signal("HUP");
    until("the fault is told", || {
        proxy.log().contains("configuration not reloaded")
    });
    assert!(enters(psql(&old_ca)));
    fs::write(&key, &new.key).unwrap();
    reload(&proxy);
    assert!(enters(psql(&new_ca)));
    assert!(!enters(psql(&old_ca)));
    assert_eq!(staying.ask(ASKED), "Fatima Perez");
}

#[test]
fn a_new_password_counts_from_a_reload_on_and_drops_nobody() {
    let proxy = shop().serve(&Recipe::with(&format!(
        "[users.changing]\npassword = \"first one\"\nbackend_user = \"{}\"\nbackend_password = \"{}\"\n",
        names::USER,
        names::PASSWORD
    )));
    block_on(async {
        let enter = async |password: &str| {
            let mut config = proxy.target().config();
            config.user("changing").password(password);
            open_session(&config).await
        };
        let staying = enter("first one").await.unwrap();
        staying.simple_query(ASKED).await.unwrap();
        replace(&proxy, "first one", "second one");
        reload(&proxy);
        enter("second one").await.unwrap();
        let refused = enter("first one").await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD));
        staying.simple_query(ASKED).await.unwrap();
    });
}

#[test]
fn new_rules_count_from_a_reload_on_and_a_fault_in_them_changes_nothing() {
    let rules = file("pg_hba.conf");
    let write = |text: &str| fs::write(&rules, text).unwrap();
    write("host all all 127.0.0.0/8 scram-sha-256\n");
    let proxy = shop().serve(&Recipe {
        server: format!("rules_file = \"{}\"", rules.display()),
        ..Recipe::default()
    });
    block_on(async {
        let enter = async || open_session(&proxy.target().config()).await;
        let staying = enter().await.unwrap();
        write("host all all 127.0.0.0/8 scram\n");
        proxy.signal("HUP");
        until("the fault is told", || {
            proxy.log().contains("did you mean") || proxy.log().contains("is no method")
        });
        enter().await.unwrap();
        write(&format!(
            "host other all all trust\nhost all {} all reject\n",
            names::USER
        ));
        reload(&proxy);
        let refused = enter().await.unwrap_err();
        let said = refused.as_db_error().unwrap();
        assert_eq!(said.code(), &SqlState::INVALID_AUTHORIZATION_SPECIFICATION);
        assert_eq!(
            said.message(),
            format!(
                "pg_hba.conf rejects connection for host \"127.0.0.1\", user \"{}\", database \"{}\", no encryption",
                names::USER,
                names::DATABASE
            )
        );
        staying.simple_query(ASKED).await.unwrap();
    });
}

#[test]
fn a_crowd_that_comes_at_once_enters_whole() {
    let proxy = shop().serve(&Recipe {
        server: "max_logins = 3".to_owned(),
        ..Recipe::default()
    });
    block_on(async {
        let config = proxy.target().config();
        let mut crowd = tokio::task::JoinSet::new();
        for _ in 0..60 {
            let config = config.clone();
            crowd.spawn(async move { open_session(&config).await });
        }
        for client in crowd.join_all().await {
            client.unwrap().simple_query(ASKED).await.unwrap();
        }
    });
}

#[test]
fn strangers_who_say_nothing_keep_nobody_out() {
    let proxy = shop().serve(&Recipe {
        server: "max_clients = 2\nmax_logins = 4".to_owned(),
        ..Recipe::default()
    });
    let mut strangers: Vec<TcpStream> = (0..20)
        .map(|_| TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port)).unwrap())
        .collect();
    block_on(async {
        let enter = async || open_session(&proxy.target().config()).await;
        let (first, second) = (enter().await.unwrap(), enter().await.unwrap());
        first.simple_query(ASKED).await.unwrap();
        second.simple_query(ASKED).await.unwrap();
        let refused = enter().await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::TOO_MANY_CONNECTIONS));
    });
    // The first of them was closed without a word, and it is counted.
    let mut rest = Vec::new();
    strangers[0].read_to_end(&mut rest).unwrap();
    assert_eq!(rest, b"");
    let (_, page) = get(proxy.http, "/metrics");
    let value = |name: &str| -> u64 {
        let line = page
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .unwrap();
        line.trim().parse().unwrap()
    };
    assert!(value("shardway_logins_evicted_total ") >= 16, "{page}");
    assert!(value("shardway_logging_in ") <= 4, "{page}");
}
