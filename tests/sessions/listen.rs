//! LISTEN and NOTIFY: in transaction mode no session keeps a backend for it, and what a client sees is what PostgreSQL
//! sends, byte order included, except for who it was: pids are the proxy's.

use crate::{
    client::{Batch, Client, batch, query},
    harness::{Proxy, Stage, Way, observer, postgres, same, until},
};

const ALL: [Way; 4] = [
    Way::Direct,
    Way::Session,
    Way::Transaction,
    Way::Alternating,
];

/// Notifications without the pid, which `own` stands for when it is the client's. In session mode they are the
/// backend's, as they come.
fn plain(lines: Vec<String>, stage: &mut Stage) -> Vec<String> {
    let own: u32 = match stage.way {
        Way::Session => stage
            .client
            .value("select pg_backend_pid()")
            .parse()
            .unwrap(),
        Way::Direct | Way::Transaction | Way::Alternating => stage.client.pid,
    };
    let own: String = String::from_utf8_lossy(&own.to_be_bytes())
        .escape_debug()
        .to_string();
    lines
        .into_iter()
        .map(|line| match line.strip_prefix("A ") {
            Some(rest) => match rest.strip_prefix(own.as_str()) {
                Some(rest) => format!("A own {rest}"),
                None => format!("A {rest}"),
            },
            None => line,
        })
        .collect()
}

/// Plays queries one by one; every answer without pids must be PostgreSQL's.
fn same_queries(queries: &[&str]) {
    same(|stage| {
        let mut seen = Vec::new();
        for sql in queries {
            seen.extend(stage.query(sql));
        }
        plain(seen, stage)
    });
}

#[test]
fn own_notifications_come_before_ready_for_query() {
    same_queries(&[
        "listen own_a",
        "notify own_a",
        "notify own_a, 'payload'",
        "notify own_b, 'nobody listens'",
        "select pg_notify('own_a', 'by function')",
        "select 1",
        "begin",
        "notify own_a, '1'",
        "notify own_a, '2'",
        "notify own_a, '1'",
        "select 1",
        "commit",
        "begin; notify own_a, 'rolled back'; rollback",
        "notify own_a, 'one'; notify own_a, 'two'; select 1",
        "unlisten own_a",
        "notify own_a, 'unheard'",
        "select 2",
    ]);
}

#[test]
fn listen_takes_effect_at_commit_and_is_undone_by_rollback() {
    same_queries(&[
        "begin",
        "listen tx_a",
        "rollback",
        "notify tx_a, 'no'",
        "begin",
        "listen tx_a",
        "notify tx_a, 'in the same transaction'",
        "commit",
        "notify tx_a, 'yes'",
        "begin",
        "unlisten tx_a",
        "rollback",
        "notify tx_a, 'still'",
        "begin",
        "savepoint s",
        "listen tx_b",
        "rollback to s",
        "listen tx_c",
        "release s",
        "savepoint t",
        "listen tx_d",
        "savepoint u",
        "release t",
        "commit",
        "notify tx_b, 'no'; notify tx_c, 'yes'; notify tx_d, 'yes'",
        "begin; listen tx_e; select 1/0; commit",
        "rollback",
        "notify tx_e, 'no'",
        "listen tx_f; select 1/0",
        "notify tx_f, 'no'",
        "begin; listen tx_g; commit; select 1/0",
        "notify tx_g, 'yes'",
        "begin; unlisten *; listen tx_h; commit",
        "notify tx_g, 'no'; notify tx_h, 'yes'",
        "discard all",
        "notify tx_h, 'no'",
        "unlisten never_heard_of",
        "unlisten *",
        "begin",
        "select 1/0",
        "listen tx_i",
        "commit",
        "notify tx_i, 'no'",
        "begin; listen tx_j; prepare transaction 'with listen'",
        "notify tx_j, 'no'",
        "listen",
        "listen a.b",
        "listen 'text'",
    ]);
}

#[test]
fn channel_names_are_folded_quoted_and_cut() {
    let long = "x".repeat(70);
    let wide = "ä".repeat(40);
    same_queries(&[
        "listen MiXed",
        "notify mixed, '1'",
        "notify \"MiXed\", 'no'",
        "listen \"MiXed\"",
        "notify \"MiXed\", '2'",
        "listen \"with \"\"quotes\"\" and ;\"",
        "notify \"with \"\"quotes\"\" and ;\", '3'",
        &format!("listen {long}"),
        &format!("notify {long}, 'cut'"),
        &format!("notify {}, 'the same'", &long[..63]),
        &format!("listen \"{wide}\""),
        &format!("notify \"{wide}\", 'cut between characters'"),
        "listen \"\"",
        "listen U&\"d\\0061ta\"",
        "notify data, 'escaped'",
        "unlisten mixed",
        "notify mixed, 'no'",
        "notify \"MiXed\", 'yes'",
    ]);
}

#[test]
fn the_extended_protocol_listens_as_well() {
    same(|stage| {
        let mut seen = Vec::new();
        let steps: [Batch; 10] = [
            batch()
                .parse("l", "listen ext_a")
                .describe("l")
                .bind("", "l", &[])
                .describe_portal("")
                .execute("", 0)
                .sync(),
            batch().run("notify ext_a, 'one'", &[]).sync(),
            batch()
                .run("select pg_notify('ext_a', $1)", &["two"])
                .run("select 1", &[])
                .sync(),
            batch()
                .run("listen ext_b", &[])
                .run("select 1/0", &[])
                .sync(),
            batch().run("notify ext_b, 'no'", &[]).sync(),
            batch()
                .run("begin", &[])
                .run("listen ext_c", &[])
                .run("commit", &[])
                .run("notify ext_c, 'yes'", &[])
                .sync(),
            batch()
                .run("listen ext_d", &[])
                .run("notify ext_d, 'together'", &[])
                .sync(),
            batch()
                .run("unlisten ext_a", &[])
                .run("notify ext_a, 'no'", &[])
                .sync(),
            batch().call("l", &[]).sync(),
            batch().run("notify ext_a, 'again'", &[]).sync(),
        ];
        for step in steps {
            seen.extend(stage.step(&step.0, 1));
        }
        // Two batches in one packet: each ends with what it notified.
        let bytes = batch()
            .run("notify ext_a, '1'", &[])
            .sync()
            .run("notify ext_a, '2'", &[])
            .sync();
        seen.extend(stage.step(&bytes.0, 2));
        plain(seen, stage)
    });
}

#[test]
fn a_notification_waits_for_the_end_of_the_transaction_and_not_longer() {
    for way in ALL {
        let mut stage = Stage::open(way, &[]);
        let mut other = observer();
        stage.client.ask(&query("listen patient"));
        stage.client.ask(&query("begin"));
        other.ask(&query("notify patient, 'while it is open'"));
        assert_eq!(stage.client.ask(&query("select 1")).len(), 4, "{way:?}");
        until("it is delivered with the commit", || {
            let seen = stage.client.ask(&query("commit; begin"));
            seen.iter().any(|line| line.starts_with('A')) || {
                // It comes once no transaction is open.
                let ended = stage.client.ask(&query("commit"));
                ended.iter().any(|line| line.starts_with('A'))
            }
        });
        stage.client.ask(&query("rollback"));
        other.ask(&query("notify patient, 'while it is idle'"));
        let (tag, body) = stage.client.frame().unwrap();
        assert_eq!(tag, b'A', "{way:?}");
        assert!(body.ends_with(b"patient\0while it is idle\0"));
        assert_eq!(stage.client.value("select 1"), "1");
    }
}

#[test]
fn the_channels_of_a_session_can_be_asked_for() {
    let asks = "select * from pg_listening_channels() order by 1";
    same_queries(&[
        asks,
        "listen asked_b; listen \"asked.A\"; listen asked_c",
        asks,
        "begin",
        "unlisten asked_b",
        "rollback",
        "unlisten asked_c",
        asks,
        "select count(*) from pg_listening_channels()",
        "notify asked_b, 'heard once'",
        "unlisten *",
        asks,
    ]);
    same(|stage| {
        let mut seen = stage.query("listen asked_e");
        let described = batch().parse("", asks).describe("").flush();
        stage.client.send(&described.0);
        seen.extend(stage.client.until("T"));
        seen.extend(stage.step(&batch().call("", &[]).sync().0, 1));
        seen.extend(stage.step(&batch().run(asks, &[]).sync().0, 1));
        seen
    });
    let proxy = Proxy::start("size = 1");
    let (mut client, mut other) = (proxy.client(), proxy.client());
    client.ask(&query("listen asked_d"));
    let seen = client.ask(&batch().run("select 1", &[]).run(asks, &[]).sync().0);
    assert!(seen[5].starts_with("E ERROR 0A000"), "{seen:?}");
    assert_eq!(client.value(asks), "asked_d");
    assert_eq!(
        other.value("select count(*) from pg_listening_channels()"),
        "0"
    );
    client.ask(&query("begin"));
    client.ask(&query("select 1"));
    let seen = client.ask(&query(asks));
    assert!(seen[0].starts_with("E ERROR 0A000"), "{seen:?}");
    assert_eq!(seen[1], "Z E");
}

#[test]
fn code_that_listens_keeps_its_backend_and_hears() {
    let proxy = Proxy::start("size = 2");
    let mut client = proxy.client();
    client.ask(&query("do $$ begin execute 'listen by_code'; end $$"));
    observer().ask(&query("notify by_code, 'heard'"));
    assert!(client.frame().unwrap().1.ends_with(b"by_code\0heard\0"));
}

#[test]
fn no_backend_is_kept_by_listen() {
    let proxy = watched("size = 1\nwait_timeout = \"10s\"");
    let mut listeners: Vec<Client> = (0..30).map(|_| proxy.client()).collect();
    for (at, listener) in listeners.iter_mut().enumerate() {
        let seen = listener.ask(&query(&format!("listen shared; listen mine_{at}")));
        assert_eq!(seen.len(), 3, "{seen:?}");
    }
    let mut other = proxy.client();
    let mut observer = observer();
    let row = listener_row(&proxy);
    assert_eq!(row[..5], ["postgres", "s0", "listening", "31", "30"]);
    other.ask(&query("notify shared, 'to all'"));
    for listener in &mut listeners {
        let (tag, body) = listener.frame().unwrap();
        assert!(tag == b'A' && body.ends_with(b"shared\0to all\0"));
    }
    observer.ask(&query("notify mine_7, 'to one'"));
    let (tag, body) = listeners[7].frame().unwrap();
    assert!(tag == b'A' && body.ends_with(b"mine_7\0to one\0"));
    for listener in &mut listeners {
        assert_eq!(listener.value("select 1"), "1");
        assert!(!listener.has_answer());
    }
    // The one backend of the pool is nobody's and listens on nothing.
    assert_eq!(
        other.value("select count(*) from pg_listening_channels()"),
        "0"
    );
}

#[test]
fn a_client_knows_its_own_notifications_by_its_pid_and_nobody_elses() {
    let proxy = Proxy::start("size = 1");
    let (mut listener, mut other) = (proxy.client(), proxy.client());
    let pid = |client: &mut Client| {
        let (tag, body) = client.frame().unwrap();
        assert_eq!(tag, b'A');
        u32::from_be_bytes([body[0], body[1], body[2], body[3]])
    };
    listener.ask(&query("listen whose"));
    for _ in 0..50 {
        // Both notify on the one backend, at once after each other.
        other.send(&query("notify whose, 'not yours'"));
        listener.send(&query("notify whose, 'yours'"));
        other.answers(1);
        let (mut seen, mut answered) = (Vec::new(), false);
        while seen.len() < 2 || !answered {
            let (tag, body) = listener.frame().unwrap();
            answered |= tag == b'Z';
            if tag == b'A' {
                let from = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                assert_eq!(
                    from == listener.pid,
                    body.ends_with(b"\0yours\0"),
                    "{body:?}"
                );
                seen.push(from);
            }
        }
        assert_eq!(listener.value("select 1"), "1");
    }
    let mut second = proxy.client();
    second.ask(&query("listen whose"));
    listener.ask(&query("notify whose"));
    assert_eq!(pid(&mut second), listener.pid);
}

#[test]
fn the_loss_of_the_listener_ends_those_who_listen_and_nobody_else() {
    let proxy = watched("size = 2");
    let (mut listener, mut open, mut other) = (proxy.client(), proxy.client(), proxy.client());
    listener.ask(&query("listen lost_a"));
    open.ask(&query("listen lost_a"));
    open.ask(&query("begin"));
    assert_eq!(kill_listener(&proxy), "t");
    let seen = listener.answers(1);
    assert_eq!(
        seen,
        [
            "E FATAL 08006 terminating connection because notifications may be missing",
            "closed"
        ]
    );
    // A transaction ends first.
    assert_eq!(open.value("select 1"), "1");
    let seen = open.ask(&query("commit"));
    assert_eq!(seen[0], "C COMMIT\\0");
    assert!(
        seen.iter().any(|line| line.starts_with("E FATAL 08006")),
        "{seen:?}"
    );
    assert_eq!(other.value("select 1"), "1");
    let mut again = proxy.client();
    again.ask(&query("listen lost_a"));
    other.ask(&query("notify lost_a, 'heard'"));
    assert_eq!(again.frame().unwrap().0, b'A');
}

#[test]
fn what_was_notified_before_listen_is_not_heard() {
    let proxy = Proxy::start("size = 2");
    let (mut early, mut late, mut other) = (proxy.client(), proxy.client(), proxy.client());
    early.ask(&query("listen since"));
    late.ask(&query("begin; listen since"));
    for round in 0..30 {
        other.ask(&query(&format!("notify since, 'before {round}'")));
        let mut fresh = proxy.client();
        let seen = fresh.ask(&query("listen since"));
        assert_eq!(seen, ["C LISTEN\\0", "Z I"]);
        assert_eq!(fresh.ask(&query("select 1")).len(), 4);
    }
    assert_eq!(late.ask(&query("commit")), ["C COMMIT\\0", "Z I"]);
    other.ask(&query("notify since, 'after'"));
    assert!(late.frame().unwrap().1.ends_with(b"since\0after\0"));
    let heard = (0..31)
        .map(|_| early.frame().unwrap())
        .filter(|(tag, _)| *tag == b'A');
    assert_eq!(heard.count(), 31);
}

/// A proxy whose console can be asked.
fn watched(pool: &str) -> Proxy {
    let port = postgres().port();
    Proxy::with(
        pool,
        &format!(
            "[databases.postgres]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n\
             [users.ops]\nauth = \"trust\"\nconsole = \"stats\"\n"
        ),
    )
}

/// The one row of SHOW LISTENERS.
fn listener_row(proxy: &Proxy) -> Vec<String> {
    let mut console = Client::connect_as(proxy.port, "ops", "shardway", &[]);
    let row = console.value("show listeners");
    row.split('|').map(str::to_owned).collect()
}

/// Ends the backend that listens for all sessions of a proxy.
fn kill_listener(proxy: &Proxy) -> String {
    let pid = &listener_row(proxy)[5];
    observer().value(&format!("select pg_terminate_backend({pid}, 5000)"))
}

#[test]
fn who_prefers_a_warning_is_warned_when_listening_works_again() {
    let proxy = watched("size = 2\nlisten_gap = \"warn\"");
    let mut listener = proxy.client();
    listener.ask(&query("listen warned_a"));
    assert_eq!(kill_listener(&proxy), "t");
    let seen = listener.until("N");
    assert_eq!(seen, ["N WARNING 01000 notifications may be missing"]);
    let row = listener_row(&proxy);
    assert_eq!((&*row[2], &*row[6], &*row[7]), ("listening", "2", "1"));
    assert!(row[10].contains("terminating connection"), "{row:?}");
    observer().ask(&query("notify warned_a, 'heard'"));
    let (tag, body) = listener.frame().unwrap();
    assert!(tag == b'A' && body.ends_with(b"warned_a\0heard\0"));
}

#[test]
fn a_client_that_does_not_take_its_notifications_is_ended() {
    let proxy = Proxy::start("size = 2\nlisten_queue = \"64kB\"");
    let (mut idle, mut open, mut other) = (proxy.client(), proxy.client(), proxy.client());
    for client in [&mut idle, &mut open] {
        client.ask(&query("listen flood"));
    }
    open.ask(&query("begin"));
    let payload = "x".repeat(7000);
    for round in 0..20 {
        other.ask(&query(&format!("notify flood, '{round}{payload}'")));
        // One that takes them has them all.
        let (tag, body) = idle.frame().unwrap();
        assert_eq!(tag, b'A', "{round}: {}", crate::client::shown(tag, &body));
        assert!(body[4..].starts_with(format!("flood\0{round}x").as_bytes()));
    }
    let seen = open.answers(1);
    assert!(seen[0].starts_with("E FATAL 53400"), "{seen:?}");
    assert_eq!(idle.value("select 1"), "1");
}

#[test]
fn text_beyond_ascii_reaches_only_who_can_read_it() {
    let proxy = Proxy::start("size = 2");
    let mut utf8 = proxy.client();
    let mut latin = Client::connect(proxy.port, &[("client_encoding", "LATIN1")]);
    for client in [&mut utf8, &mut latin] {
        client.ask(&query("listen texts"));
    }
    let mut other = observer();
    other.ask(&query("notify texts, 'plain'"));
    for client in [&mut utf8, &mut latin] {
        assert!(client.frame().unwrap().1.ends_with(b"texts\0plain\0"));
    }
    other.ask(&query("notify texts, 'fünf'"));
    assert!(
        utf8.frame()
            .unwrap()
            .1
            .ends_with("texts\0fünf\0".as_bytes())
    );
    assert!(latin.answers(1)[0].starts_with("E FATAL 22P05"));
}
