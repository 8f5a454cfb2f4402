//! A cancel reaches the session that it means, through whichever proxy it comes, and nobody else: not the next user of
//! the backend, however late it arrives, and nobody at all when its key is wrong.

use crate::{
    harness::{Proxy, Recipe, Target, block_on, customers_on, get, shop, until},
    raw::{Raw, cancel_request},
};
use shardway::sandbox::shop as names;
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, Shutdown, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
};

/// Proxies that know each other, numbered from 1.
fn peers(count: usize, more: &str, query: &str) -> Vec<Proxy> {
    let recipe = |id: usize| Recipe {
        server: format!("id = {id}\n{more}\npeers = {{}}"),
        ..Recipe::default()
    };
    let proxies: Vec<Proxy> = (1..=count).map(|id| shop().serve(&recipe(id))).collect();
    let list = proxies.iter().enumerate().map(|(at, proxy)| {
        format!(
            "{} = \"postgres://127.0.0.1:{}{query}\"",
            at + 1,
            proxy.port
        )
    });
    let list = list.collect::<Vec<_>>().join(", ");
    for proxy in &proxies {
        tell(proxy, &list);
    }
    proxies
}

/// Gives a proxy this list of peers while it runs.
fn tell(proxy: &Proxy, list: &str) {
    let old = fs::read_to_string(&proxy.config).unwrap();
    let line = old
        .lines()
        .find(|line| line.starts_with("peers"))
        .unwrap()
        .to_owned();
    fs::write(
        &proxy.config,
        old.replace(&line, &format!("peers = {{ {list} }}")),
    )
    .unwrap();
    let reloads = |log: &str| log.matches("configuration reloaded").count();
    let before = reloads(&proxy.log());
    proxy.signal("HUP");
    until("the peers are taken over", || {
        reloads(&proxy.log()) > before
    });
}

fn passed_on(proxy: &Proxy) -> String {
    let (_, page) = get(proxy.http, "/metrics");
    let line = page
        .lines()
        .find(|line| line.starts_with("shardway_cancels_passed_on_total"));
    line.unwrap().rsplit(' ').next().unwrap().to_owned()
}

/// Whether a statement with this mark runs on a shard.
fn runs(shard: usize, mark: &str) -> bool {
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%{mark}%' AND state = 'active' AND pid <> pg_backend_pid()"
    );
    let rows = block_on(shop().shards()[shard].query(names::DATABASE, &sql)).unwrap();
    rows[0][0].as_deref() != Some("0")
}

/// Logs in with this version of the protocol and begins a statement that takes long.
fn sleeper(proxy: &Proxy, minor: u32, mark: &str) -> Raw {
    let parameters = [("user", names::USER), ("database", names::DATABASE)];
    let mut raw = Raw::login_with(
        &proxy.target(),
        3 << 16 | minor,
        &parameters,
        names::PASSWORD,
    );
    let key = customers_on(&shop().settings, 0)[0];
    raw.query(&format!(
        "SELECT pg_sleep(100), '{mark}' FROM customers WHERE id = {key}"
    ));
    until("it runs", || runs(0, mark));
    raw
}

fn assert_cancelled(raw: &mut Raw) {
    let errors: Vec<_> = raw
        .until(b'Z')
        .iter()
        .filter_map(crate::raw::Reply::error)
        .collect();
    assert_eq!(errors, [("ERROR".to_owned(), "57014".to_owned())]);
    raw.query("SELECT 1");
    assert_eq!(raw.until(b'Z')[1].tag, b'D', "the session goes on");
}

#[test]
fn a_cancel_that_comes_to_the_wrong_proxy_is_passed_on_to_the_right_one() {
    let proxies = peers(3, "", "");
    for minor in [0, 2] {
        for (own, other) in [(0, 1), (1, 0), (2, 0)] {
            let mark = format!("of {minor} at {own}");
            let mut session = sleeper(&proxies[own], minor, &mark);
            assert_eq!(session.cancel_key().len(), if minor == 0 { 8 } else { 36 });
            session.cancel(&proxies[other].target());
            assert_cancelled(&mut session);
            // And its own proxy does it by itself.
            let mut session = sleeper(&proxies[own], minor, &mark);
            session.cancel(&proxies[own].target());
            assert_cancelled(&mut session);
        }
    }
    assert_eq!(
        proxies.iter().map(passed_on).collect::<Vec<_>>(),
        ["4", "2", "0"]
    );
}

#[test]
fn a_peer_is_told_over_tls_when_its_address_says_so() {
    let made = crate::tls::files();
    let (cert, key) = (made.cert.display(), made.key.display());
    let tls = format!("tls = {{ mode = \"prefer\", cert = \"{cert}\", key = \"{key}\" }}");
    let verified = format!(
        "?sslmode=verify-full&sslrootcert={}",
        made.authority.display()
    );
    let proxies = peers(2, &tls, &verified);
    let mut session = sleeper(&proxies[0], 2, "told over TLS");
    session.cancel(&proxies[1].target());
    assert_cancelled(&mut session);
    // One that cannot be told as its address demands is not told at all: the key is a secret.
    let plain = peers(2, "", &verified);
    let mut session = sleeper(&plain[0], 2, "not told");
    session.cancel(&plain[1].target());
    assert!(
        plain[1]
            .log()
            .contains("a cancel request did not reach the proxy"),
        "{}",
        plain[1].log()
    );
    assert!(runs(0, "not told"));
    session.cancel(&plain[0].target());
    assert_cancelled(&mut session);
}

#[test]
fn wrong_keys_do_nothing_however_many() {
    let proxies = peers(2, "", "");
    let mut session = sleeper(&proxies[0], 2, "guessed");
    let right = session.cancel_key().to_vec();
    let try_key = |key: &[u8], proxy: &Proxy| {
        let mut request = Raw::connect(&proxy.target());
        request.send(&cancel_request(key));
        assert_eq!(request.rest(), (String::new(), None), "never answered");
    };
    for at in 0..200 {
        let mut wrong = right.clone();
        // The number stays, which says whose it is; one bit of the secret differs.
        wrong[4 + at % 32] ^= 1 << (at % 8);
        try_key(&wrong, &proxies[at % 2]);
    }
    for wrong in [
        &right[..8],
        &right[..35],
        &[&right[..], &[0]].concat(),
        &[&right[..], &[1, 1]].concat(),
    ] {
        try_key(wrong, &proxies[0]);
        try_key(wrong, &proxies[1]);
    }
    assert!(runs(0, "guessed"));
    session.cancel(&proxies[1].target());
    assert_cancelled(&mut session);
}

#[test]
fn a_request_is_never_passed_on_twice() {
    let [one, two] = &peers(2, "", "")[..] else {
        panic!("two proxies")
    };
    // Each believes that the other is number 3.
    tell(one, &format!("3 = \"postgres://127.0.0.1:{}\"", two.port));
    tell(two, &format!("3 = \"postgres://127.0.0.1:{}\"", one.port));
    let mut request = Raw::connect(&one.target());
    request.send(&cancel_request(&[3, 0, 0, 1, 1, 2, 3, 4]));
    assert_eq!(request.rest(), (String::new(), None));
    assert_eq!([passed_on(one), passed_on(two)], ["1", "0"]);
}

/// Stands between a proxy and a server, and holds cancel requests back until it is told.
struct Gate {
    port: u16,
    state: Arc<(Mutex<Held>, Condvar)>,
}

#[derive(Default)]
struct Held {
    waiting: usize,
    open: bool,
}

impl Gate {
    fn before(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new((Mutex::new(Held::default()), Condvar::new()));
        let held = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let held = Arc::clone(&held);
                std::thread::spawn(move || serve(client, server, &held));
            }
        });
        Self { port, state }
    }

    fn waiting(&self) -> usize {
        self.state.0.lock().unwrap().waiting
    }

    fn open(&self) {
        self.state.0.lock().unwrap().open = true;
        self.state.1.notify_all();
    }
}

fn serve(mut client: TcpStream, server: u16, held: &(Mutex<Held>, Condvar)) {
    let mut head = [0; 8];
    if client.read_exact(&mut head).is_err() {
        return;
    }
    if head[4..] == 80_877_102_u32.to_be_bytes() {
        let mut state = held.0.lock().unwrap();
        state.waiting += 1;
        while !state.open {
            state = held.1.wait(state).unwrap();
        }
    }
    let mut server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).unwrap();
    server.write_all(&head).unwrap();
    let (mut from_client, mut to_server) =
        (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        drop(std::io::copy(&mut from_client, &mut to_server));
        drop(to_server.shutdown(Shutdown::Write));
    });
    drop(std::io::copy(&mut server, &mut client));
    drop(client.shutdown(Shutdown::Both));
}

/// A proxy with one backend to a shard, behind a gate.
fn gated() -> (Gate, Proxy) {
    let gate = Gate::before(shop().shards()[0].port());
    let text = format!(
        "[server]\nlisten = [\"127.0.0.1:0\"]\nhttp = \"127.0.0.1:0\"\n[users.app]\npassword = \"app\"\n[pool]\nsize = 1\n\
         [databases.shop]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{}/shop?sslmode=disable\" }}\n",
        gate.port
    );
    let proxy = Proxy::start(shop().dir(), &text);
    (gate, proxy)
}

fn pid_of(raw: &mut Raw) -> String {
    let replies = raw.until(b'Z');
    let row = replies.iter().find(|reply| reply.tag == b'D');
    String::from_utf8(row.unwrap_or_else(|| panic!("{replies:?}")).body[6..].to_vec()).unwrap()
}

/// One whose statement has ended while its cancel is still on its way: its backend, and another who wants that.
fn crossing(gate: &Gate, proxy: &Proxy, mark: &str) -> (String, Raw) {
    let [mut first, mut second] = [Raw::login(&proxy.target()), Raw::login(&proxy.target())];
    let direct = Target {
        name: "direct",
        port: shop().shards()[0].port(),
    };
    // The statement ends when we let it.
    let lock = format!("pg_advisory_xact_lock(hashtext('{mark}'))");
    let mut holder = Raw::login(&direct);
    holder.query(&format!("BEGIN; SELECT {lock}"));
    holder.until(b'Z');
    first.query(&format!(
        "SELECT pg_backend_pid() FROM {lock} AS first_{mark}"
    ));
    until("it runs", || runs(0, &format!("AS first_{mark}")));
    let mut request = Raw::connect(&proxy.target());
    request.send(&cancel_request(first.cancel_key()));
    until("the request waits at the gate", || gate.waiting() == 1);
    second.query(&format!(
        "SELECT pg_backend_pid() FROM (SELECT pg_sleep(0.5)) AS {mark}"
    ));
    holder.query("COMMIT");
    (pid_of(&mut first), second)
}

#[test]
fn a_cancel_that_comes_late_does_not_hit_the_next_user_of_the_backend() {
    let (gate, proxy) = gated();
    let (backend, mut second) = crossing(&gate, &proxy, "late");
    // The backend is at rest, and still nobody gets it.
    for _ in 0..10 {
        assert!(!runs(0, "AS late"), "its cancel is still on its way");
    }
    gate.open();
    assert_eq!(
        pid_of(&mut second),
        backend,
        "not cancelled, on the same backend"
    );
}

#[test]
fn a_backend_whose_cancel_is_lost_on_the_way_is_nobody_elses() {
    let (gate, proxy) = gated();
    let (backend, mut second) = crossing(&gate, &proxy, "lost");
    // Nobody knows whether the request will ever come: after five seconds another backend serves.
    assert_ne!(pid_of(&mut second), backend);
    gate.open();
}
