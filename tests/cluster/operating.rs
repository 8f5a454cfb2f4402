//! Running it: a reload drops nobody, a drain lets transactions end, pages and console tell what is going on, and
//! `check --connect` says whether the servers fit.

use crate::{
    harness::{
        Proxy, Recipe, SHARDWAY, block_on, customers_on, get, home_of, open_session, printed, shop,
        until,
    },
    raw::Raw,
};
use shardway::sandbox::shop as names;
use std::{fs, net::TcpStream, process::Command};
use tokio_postgres::error::SqlState;

#[test]
fn a_reload_lets_a_new_user_in_and_drops_nobody() {
    let shop = shop();
    let proxy = shop.serve(&Recipe::default());
    let key = customers_on(&shop.settings, 0)[0];
    let mut newcomer = proxy.target().config();
    newcomer.user("newcomer").password("new");
    block_on(async {
        let [client, busy] = [
            proxy.target().connect().await,
            proxy.target().connect().await,
        ];
        let statement = client
            .prepare("SELECT name FROM customers WHERE id = $1")
            .await
            .unwrap();
        client.batch_execute("SET work_mem = '9MB'").await.unwrap();
        busy.batch_execute(&format!(
            "BEGIN; UPDATE customers SET email = email WHERE id = {key}"
        ))
        .await
        .unwrap();
        let refused = open_session(&newcomer).await.unwrap_err();
        assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD));

        let old = fs::read_to_string(&proxy.config).unwrap();
        fs::write(
            &proxy.config,
            format!("{old}\n[users.newcomer]\nnonsense = 1\n"),
        )
        .unwrap();
        proxy.signal("HUP");
        until("the fault is told", || proxy.log().contains("not reloaded"));
        let new = "[users.newcomer]\npassword = \"new\"\ndatabases = [\"shop\"]\n\
                   backend_user = \"app\"\nbackend_password = \"app\"\n";
        fs::write(&proxy.config, format!("{old}\n{new}")).unwrap();
        proxy.signal("HUP");
        until("the reload is told", || {
            proxy.log().contains("configuration reloaded")
        });
        let entered = open_session(&newcomer).await.unwrap();
        entered.query_one(&statement_text(), &[&key]).await.unwrap();

        // Those who were there before keep their connection, their statements, settings and transactions.
        client.query_one(&statement, &[&key]).await.unwrap();
        let row = client.query_one("SHOW work_mem", &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), "9MB");
        busy.batch_execute("COMMIT").await.unwrap();
    });
}

fn statement_text() -> String {
    "SELECT name FROM customers WHERE id = $1".to_owned()
}

#[test]
fn a_drain_sends_idle_clients_away_and_lets_transactions_end() {
    let shop = shop();
    let mut proxy = shop.serve(&Recipe::default());
    let key = (7_000_000..)
        .find(|id| home_of(&shop.settings, *id) == 1)
        .unwrap();
    let [mut idle, mut busy] = [Raw::login(&proxy.target()), Raw::login(&proxy.target())];
    busy.query(&format!(
        "BEGIN; INSERT INTO customers VALUES ({key}, 'n', 'drained', NULL)"
    ));
    busy.until(b'Z');
    proxy.signal("TERM");
    let gone = Some(("FATAL".to_owned(), "57P01".to_owned()));
    assert_eq!(idle.rest(), ("E".to_owned(), gone.clone()));
    until("nobody new is let in", || {
        TcpStream::connect(("127.0.0.1", proxy.port)).is_err()
    });
    let (status, text) = get(proxy.http, "/readyz");
    assert_eq!((status, text.as_str()), (503, "draining\n"));
    busy.query(&format!(
        "UPDATE customers SET name = 'drained' WHERE id = {key}"
    ));
    assert!(busy.until(b'Z').iter().all(|reply| reply.error().is_none()));
    busy.query("COMMIT");
    assert_eq!(busy.until(b'Z')[0].body, b"COMMIT\0");
    assert_eq!(busy.rest(), ("E".to_owned(), gone));
    assert_eq!(proxy.wait(), Some(0), "{}", proxy.log());
    let sql = format!("DELETE FROM customers WHERE id = {key} RETURNING email, name");
    let rows = block_on(shop.shards()[1].query(names::DATABASE, &sql)).unwrap();
    assert_eq!(
        rows[0],
        [Some("drained".to_owned()), Some("drained".to_owned())]
    );
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut proxy = shop().serve(&Recipe::default());
    let mut busy = Raw::login(&proxy.target());
    busy.query("BEGIN; SELECT id FROM customers WHERE id = 8");
    busy.until(b'Z');
    proxy.signal("TERM");
    until("it drains", || proxy.log().contains("draining"));
    proxy.signal("TERM");
    assert_eq!(
        busy.rest().1,
        Some(("FATAL".to_owned(), "57P01".to_owned()))
    );
    assert_eq!(proxy.wait(), Some(0), "{}", proxy.log());
}

#[test]
fn pages_tell_life_readiness_and_figures() {
    let proxy = shop().serve(&Recipe::default());
    assert_eq!(get(proxy.http, "/livez"), (200, "live\n".to_owned()));
    until("all shards have been tried", || {
        get(proxy.http, "/readyz") == (200, "ready\n".to_owned())
    });
    assert_eq!(get(proxy.http, "/nowhere").0, 404);
    let figure = |name: &str| -> f64 {
        let (status, text) = get(proxy.http, "/metrics");
        assert_eq!(status, 200);
        let of_it = text.lines().filter(|line| line.starts_with(name));
        of_it
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    };
    let queries = "shardway_queries_total";
    assert!(get(proxy.http, "/metrics").1.contains(queries));
    let before = figure(queries);
    block_on(async {
        let client = proxy.target().connect().await;
        for id in 1..=25_i64 {
            client.query_one(&statement_text(), &[&id]).await.unwrap();
        }
    });
    until("the queries are counted", || {
        figure(queries) >= before + 25.0
    });
}

/// What the console answers, as one line per row, columns in `|`.
fn console(proxy: &Proxy, command: &str) -> String {
    let mut psql = Command::new("psql");
    proxy.target().apply(&mut psql);
    psql.env("PGUSER", "ops")
        .env("PGPASSWORD", "ops")
        .env("PGDATABASE", "shardway");
    printed(psql.args(["-X", "-A", "-c", command]))
}

/// The values of a column, by its name.
fn column(table: &str, name: &str) -> Vec<String> {
    let mut lines = table.lines();
    let head: Vec<&str> = lines.next().unwrap().split('|').collect();
    let at = head
        .iter()
        .position(|column| *column == name)
        .unwrap_or_else(|| panic!("no {name} in {head:?}"));
    lines
        .filter(|line| line.contains('|'))
        .map(|line| line.split('|').nth(at).unwrap().to_owned())
        .collect()
}

#[test]
fn the_console_shows_pools_clients_servers_and_the_rest() {
    let shop = shop();
    let proxy = shop.serve(&Recipe::default());
    let key = customers_on(&shop.settings, 1)[0];
    block_on(async {
        let mut config = proxy.target().config();
        config.application_name("watched");
        let client = open_session(&config).await.unwrap();
        client.batch_execute("BEGIN").await.unwrap();
        let sql = "SELECT pg_backend_pid() FROM customers WHERE id = $1";
        let pid: i32 = client.query_one(sql, &[&key]).await.unwrap().get(0);

        assert!(console(&proxy, "SHOW VERSION").contains(env!("CARGO_PKG_VERSION")));
        let databases = column(&console(&proxy, "SHOW DATABASES"), "name");
        assert!(
            databases.iter().any(|name| name.contains("shop")),
            "{databases:?}"
        );
        let clients = console(&proxy, "SHOW CLIENTS");
        assert!(
            column(&clients, "application_name").contains(&"watched".to_owned()),
            "{clients}"
        );
        let servers = console(&proxy, "SHOW SERVERS");
        assert!(
            column(&servers, "remote_pid").contains(&pid.to_string()),
            "{servers}"
        );
        let pools = console(&proxy, "SHOW POOLS");
        let active: u32 = column(&pools, "cl_active")
            .iter()
            .map(|n| n.parse::<u32>().unwrap())
            .sum();
        let used: u32 = column(&pools, "sv_active")
            .iter()
            .map(|n| n.parse::<u32>().unwrap())
            .sum();
        assert!(active >= 1 && used == 1, "{pools}");
        assert!(
            column(&pools, "user").contains(&"app".to_owned()),
            "{pools}"
        );
        client.batch_execute("COMMIT").await.unwrap();
        let config = console(&proxy, "SHOW CONFIG");
        let keys = column(&config, "key");
        assert!(
            keys.iter().any(|name| name.contains("max_clients")),
            "{config}"
        );
    });
    let queries = || -> u64 {
        let stats = console(&proxy, "SHOW STATS");
        column(&stats, "total_query_count")
            .iter()
            .map(|n| n.parse::<u64>().unwrap())
            .sum()
    };
    until("the query is counted", || queries() >= 1);
    let mut psql = Command::new("psql");
    proxy.target().apply(&mut psql);
    let refused = psql
        .env("PGDATABASE", "shardway")
        .args(["-X", "-c", "SHOW POOLS"])
        .output()
        .unwrap();
    assert!(!refused.status.success(), "the application has no console");
}

#[test]
fn check_finds_the_running_shards_right_and_says_what_does_not_fit() {
    let shop = shop();
    let check = |config: &std::path::Path| {
        let mut command = Command::new(SHARDWAY);
        command.args(["check", "--connect", "--config"]).arg(config);
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (
            output.status.code(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let (code, said) = check(&shop.proxy.config);
    assert_eq!(code, Some(0), "{said}");
    let wrong = fs::read_to_string(&shop.proxy.config).unwrap().replace(
        "\"public.orders\" = \"customer_id\"",
        "\"public.orders\" = \"client_id\"",
    );
    let file = shop.dir().join("wrong.toml");
    fs::write(&file, wrong).unwrap();
    let (code, said) = check(&file);
    assert_eq!(code, Some(3), "{said}");
    assert!(
        said.contains("client_id") && said.contains("orders"),
        "{said}"
    );
}
