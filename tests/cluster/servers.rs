//! Towards servers: TLS as the address says, logins that they refuse, passwords that change, and servers that do not
//! answer. What happens there is told to clients, drops none that can go on, and hammers nobody.

use crate::harness::{Proxy, block_on, environment, open_session, until};
use crate::tls::certificates;
use shardway::{
    clock::Clock,
    sandbox::{Auth, Identity, Sandbox},
};
use std::{
    fs, io,
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};
use tokio_postgres::{Client, Config, Error, error::SqlState};

/// How long a connect may take.
const TIMEOUT: Duration = Duration::from_secs(3);

/// A server with the role `app`, and a proxy's configuration before it.
fn sandbox(identity: Option<Identity>) -> Sandbox {
    let builder = Sandbox::builder(environment()).auth(Auth::Scram);
    let builder = match identity {
        Some(identity) => builder.tls(identity),
        None => builder,
    };
    let sandbox = builder.start().unwrap();
    run(&sandbox, "CREATE ROLE app LOGIN PASSWORD 'old'");
    sandbox
}

fn run(sandbox: &Sandbox, sql: &str) {
    block_on(sandbox.cluster(0).execute("postgres", sql)).unwrap();
}

fn configuration(address: &str, user: &str) -> String {
    format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n\
         [pool]\nconnect_timeout = \"3s\"\n\
         [databases.postgres]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{address}\" }}\n\
         [users.app]\nauth = \"trust\"\n{user}\n"
    )
}

fn config(proxy: &Proxy) -> Config {
    let mut config = Config::new();
    config.host("127.0.0.1").port(proxy.port);
    config.dbname("postgres").user("app");
    config
}

async fn answer(client: &Client, sql: &str) -> Result<String, Error> {
    Ok(client.query_one(sql, &[]).await?.get(0))
}

#[track_caller]
fn assert_failure(error: &Error, words: &[&str]) {
    let said = error.as_db_error().unwrap_or_else(|| panic!("{error:?}"));
    assert_eq!(said.code(), &SqlState::CONNECTION_FAILURE, "{said:?}");
    let detail = said.detail().unwrap();
    for word in words {
        assert!(detail.contains(word), "{said:?}");
    }
}

#[test]
fn a_login_is_bound_to_the_servers_certificate_where_the_address_requires_it() {
    let made = certificates(&["127.0.0.1"]);
    let secure = sandbox(Some(Identity {
        cert_pem: made.cert.into_bytes(),
        key_pem: made.key.into_bytes(),
    }));
    let port = secure.cluster(0).port();
    let address = format!("{port}/postgres?sslmode=require&channel_binding=require");
    let ask = |address: &str, role: &str| {
        let user = format!("backend_user = \"{role}\"\nbackend_password = \"old\"");
        let proxy = Proxy::start(secure.root(), &configuration(address, &user));
        block_on(async {
            let client = open_session(&config(&proxy)).await?;
            answer(&client, "SELECT current_user::text").await
        })
    };
    assert_eq!(ask(&address, "app").unwrap(), "app");
    // A server that does not ask for SCRAM is shown nothing and not believed.
    run(
        &secure,
        "SET password_encryption = 'md5'; CREATE ROLE weak LOGIN PASSWORD 'old'",
    );
    let hba = secure.cluster(0).data_dir().join("pg_hba.conf");
    let rules = fs::read_to_string(&hba).unwrap();
    fs::write(&hba, format!("host all weak all md5\n{rules}")).unwrap();
    run(&secure, "SELECT pg_reload_conf()");
    assert_failure(
        &ask(&address, "weak").unwrap_err(),
        &["channel binding is required", "another proof than SCRAM"],
    );
    let preferred = format!("{port}/postgres?sslmode=require&channel_binding=prefer");
    assert_eq!(ask(&preferred, "weak").unwrap(), "weak");
}

#[test]
fn tls_begins_at_once_and_a_cancel_takes_the_same_way() {
    let made = certificates(&["127.0.0.1"]);
    let secure = sandbox(Some(Identity {
        cert_pem: made.cert.into_bytes(),
        key_pem: made.key.into_bytes(),
    }));
    let authority = secure.root().join("ca.crt");
    fs::write(&authority, made.authority).unwrap();
    let port = secure.cluster(0).port();
    let address = format!(
        "{port}/postgres?sslmode=verify-full&sslrootcert={}&sslnegotiation=direct&channel_binding=require",
        authority.display()
    );
    let user = "backend_password = \"old\"";
    let proxy = Proxy::start(secure.root(), &configuration(&address, user));
    let version = block_on(
        secure
            .cluster(0)
            .query("postgres", "SHOW server_version_num"),
    )
    .unwrap();
    let version: u32 = version[0][0].as_deref().unwrap().parse().unwrap();
    block_on(async {
        let entered = open_session(&config(&proxy)).await;
        if version < 170_000 {
            assert_failure(&entered.unwrap_err(), &["TLS"]);
            return;
        }
        let client = entered.unwrap();
        let token = client.cancel_token();
        let asleep = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        let cancel = async {
            while secure.cluster(0).query("postgres", asleep).await.unwrap()[0][0].as_deref()
                != Some("1")
            {}
            token.cancel_query(tokio_postgres::NoTls).await.unwrap();
        };
        let (slept, ()) = tokio::join!(answer(&client, "SELECT pg_sleep(600)::text"), cancel);
        let error = slept.unwrap_err();
        assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED), "{error:?}");
    });
}

#[test]
fn a_changed_password_is_taken_over_by_a_reload_and_nobody_is_dropped() {
    let sandbox = sandbox(None);
    let secret = sandbox.root().join("app.secret");
    fs::write(&secret, "old\n").unwrap();
    let address = format!("{}/postgres", sandbox.cluster(0).port());
    let user = format!("backend_password_file = \"{}\"", secret.display());
    let proxy = Proxy::start(sandbox.root(), &configuration(&address, &user));
    block_on(async {
        let busy = open_session(&config(&proxy)).await.unwrap();
        let other = open_session(&config(&proxy)).await.unwrap();
        busy.batch_execute("BEGIN; SELECT 1").await.unwrap();
        sandbox
            .cluster(0)
            .execute("postgres", "ALTER ROLE app PASSWORD 'new'")
            .await
            .unwrap();
        // The one backend is in use: another must be opened, with the old password still.
        let error = answer(&other, "SELECT 'x'").await.unwrap_err();
        assert_failure(
            &error,
            &["\"s0\"", "password authentication failed", "(SW211)"],
        );
        // Whoever works goes on.
        assert_eq!(answer(&busy, "SELECT 'works'").await.unwrap(), "works");

        fs::write(&secret, "new\n").unwrap();
        proxy.signal("HUP");
        until("the reload is told", || {
            proxy.log().contains("configuration reloaded")
        });
        assert_eq!(answer(&other, "SELECT 'opened'").await.unwrap(), "opened");
        assert_eq!(answer(&busy, "SELECT 'works'").await.unwrap(), "works");
        busy.batch_execute("ROLLBACK").await.unwrap();
        assert_eq!(answer(&busy, "SELECT 'after'").await.unwrap(), "after");
        // The backend of the old password came back and was not kept.
    });
    let count = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'app'";
    until("only the backend of the new password is left", || {
        let rows = block_on(sandbox.cluster(0).query("postgres", count)).unwrap();
        rows[0][0].as_deref() == Some("1")
    });
}

#[test]
fn a_server_that_refuses_the_login_is_not_hammered_by_those_who_keep_coming() {
    let sandbox = sandbox(None);
    let address = format!("{}/postgres", sandbox.cluster(0).port());
    let user = "backend_password = \"wrong\"";
    let proxy = Proxy::start(sandbox.root(), &configuration(&address, user));
    let begun = Clock.now();
    for _ in 0..16 {
        let error = block_on(open_session(&config(&proxy))).unwrap_err();
        assert_failure(&error, &["password authentication failed", "(SW211)"]);
    }
    // On a busy machine one may take its time; nobody waits until there is none left.
    let took = begun.elapsed();
    assert!(took < 8 * TIMEOUT, "{took:?} for sixteen clients");
    let log = sandbox.cluster(0).log();
    let tries = log.matches("password authentication failed").count();
    assert!((2..=9).contains(&tries), "{tries} logins were tried");
    // Once that is repaired, the next try finds out.
    run(&sandbox, "ALTER ROLE app PASSWORD 'wrong'");
    until("the role is let in", || {
        block_on(open_session(&config(&proxy))).is_ok()
    });
}

/// A server behind which packets get lost until it is told to let them through.
struct Hole {
    port: u16,
    open: Arc<AtomicBool>,
    /// How many connections it has seen.
    seen: Arc<AtomicUsize>,
}

impl Hole {
    fn before(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let hole = Self {
            port: listener.local_addr().unwrap().port(),
            open: Arc::default(),
            seen: Arc::default(),
        };
        let (open, seen) = (Arc::clone(&hole.open), Arc::clone(&hole.seen));
        // Ends with the process.
        thread::spawn(move || {
            let mut silent = Vec::new();
            for stream in listener.incoming().map_while(Result::ok) {
                seen.fetch_add(1, Ordering::SeqCst);
                if open.load(Ordering::SeqCst) {
                    let there = TcpStream::connect(("127.0.0.1", server)).unwrap();
                    pipe(&stream, &there);
                    pipe(&there, &stream);
                } else {
                    silent.push(stream);
                }
            }
        });
        hole
    }
}

fn pipe(from: &TcpStream, to: &TcpStream) {
    let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
    // Either side's end ends it.
    thread::spawn(move || drop(io::copy(&mut from, &mut to)));
}

#[test]
fn a_server_that_does_not_answer_costs_one_client_the_timeout_and_not_each() {
    let sandbox = sandbox(None);
    let hole = Hole::before(sandbox.cluster(0).port());
    let address = format!("{}/postgres?sslmode=disable", hole.port);
    let user = "backend_password = \"old\"";
    let proxy = Proxy::start(sandbox.root(), &configuration(&address, user));
    let begun = Clock.now();
    let first = block_on(open_session(&config(&proxy))).unwrap_err();
    assert_failure(&first, &["\"s0\"", "did not answer in time", "(SW204)"]);
    assert!(begun.elapsed() >= TIMEOUT, "the first finds out");
    let before = hole.seen.load(Ordering::SeqCst);
    let begun = Clock.now();
    for _ in 0..8 {
        let error = block_on(open_session(&config(&proxy))).unwrap_err();
        assert_failure(&error, &["did not answer in time"]);
    }
    let took = begun.elapsed();
    assert!(took < 4 * TIMEOUT, "{took:?} for eight clients");
    // Readiness is asked about by connections of its own, one in five seconds.
    let tried = hole.seen.load(Ordering::SeqCst) - before;
    assert!(tried <= 5, "{tried} connects for eight clients");
    hole.open.store(true, Ordering::SeqCst);
    until("it is found again", || {
        block_on(open_session(&config(&proxy))).is_ok()
    });
    let answered = block_on(async {
        let client = open_session(&config(&proxy)).await?;
        answer(&client, "SELECT 'back'").await
    });
    assert_eq!(answered.unwrap(), "back");
}
