//! Code of the database that asks for `currval` or `lastval` (functions, defaults, checks, generated columns, domains,
//! aggregates) is told what its own session drew, or that nothing was drawn: never what another session did.

use crate::{
    client::{Client, batch, query},
    harness::{Proxy, observer, until},
};

/// What asks, and how: `$` stands for the number of this test's objects.
const MADE: &[&str] = &[
    "create sequence $_s",
    "create table $_plain (n int)",
    "create function $_last() returns bigint language sql as 'select lastval()'",
    "create function $_runs(code text) returns bigint language plpgsql as $f$ declare n bigint; begin execute code into n; return n; end $f$",
    "create function $_add(bigint, int) returns bigint language sql as 'select lastval()'",
    "create aggregate $_total(int) (sfunc = $_add, stype = bigint)",
    "create table $_default (n int, m bigint default currval('$_s'))",
    "create table $_check (n int check (currval('$_s') is null or n > 0 and currval('$_s') < 0))",
    "create function $_same(n int) returns bigint immutable language sql as 'select lastval()'",
    "create table $_generated (n int, m bigint generated always as ($_same(n)) stored)",
    "create table $_index (n int)",
    "create index on $_index ($_same(n))",
    "create domain $_domain as int check (value > 0 and currval('$_s') < 0)",
    "create table $_of_domain (n $_domain)",
    "create view $_view as select lastval() as n",
    "create function $_fired() returns trigger language plpgsql as $f$ begin raise exception '%', lastval(); end $f$",
    "create table $_triggered (n int)",
    "create trigger t before insert on $_triggered for each row execute function $_fired()",
];

const ASKS: &[&str] = &[
    "select $_last()",
    "select $_runs('select lastval()')",
    "select $_total(1)",
    "insert into $_default (n) values (1) returning m",
    "insert into $_check values (1)",
    "insert into $_generated (n) values (1) returning m",
    "insert into $_index (n) values (1)",
    "select 1::$_domain",
    "insert into $_of_domain values (1)",
    "select n from $_view",
    "insert into $_triggered values (1)",
    "do $d$ begin if lastval() > 0 then raise exception 'told'; end if; end $d$",
    "copy (select lastval()) to stdout",
    "create temp table x as select lastval()",
    "insert into $_plain values (1); select lastval()",
];

fn make(test: &str) {
    let mut admin = observer();
    for sql in MADE {
        let seen = admin.ask(&query(&sql.replace("$_", test)));
        assert!(seen[0].starts_with('C'), "{sql}: {seen:?}");
    }
}

/// Another session draws on the only backend, and leaves.
fn draw(proxy: &Proxy, test: &str) {
    let seen = proxy
        .client()
        .ask(&query(&format!("select nextval('{test}s')")));
    assert!(seen[1].starts_with("D "), "{seen:?}");
}

fn is_not_told(seen: &[String]) -> bool {
    seen.iter().any(|line| line.starts_with("E ERROR 55000"))
}

/// A proxy with one backend, once it knows what the code of the database does.
fn learned(test: &str) -> Proxy {
    let proxy = Proxy::start("size = 1\nwait_timeout = \"10s\"");
    let known = format!("explain (costs off) insert into {test}triggered values (1)");
    until("the code is known", || {
        draw(&proxy, test);
        let seen = proxy.client().ask(&query(&format!("{known}; select 1")));
        assert!(!seen.is_empty());
        draw(&proxy, test);
        is_not_told(
            &proxy
                .client()
                .ask(&query(&format!("insert into {test}triggered values (1)"))),
        )
    });
    proxy
}

#[test]
fn code_is_never_told_a_number_that_another_session_drew() {
    make("asked_");
    let proxy = learned("asked_");
    for ask in ASKS {
        let sql = ask.replace("$_", "asked_");
        let many = sql.contains(';') && !sql.starts_with("do ");
        let extended = (!many).then(|| batch().run(&sql, &[]).sync().0);
        for bytes in [Some(query(&sql)), extended].into_iter().flatten() {
            draw(&proxy, "asked_");
            let seen = proxy.client().ask(&bytes);
            assert!(is_not_told(&seen), "{sql}: {seen:?}");
        }
    }
    // lastval() by FunctionCall.
    draw(&proxy, "asked_");
    let mut call = vec![b'F', 0, 0, 0, 14, 0, 0, 0x09, 0xff, 0, 0, 0, 0, 0, 0];
    call[5..9].copy_from_slice(&2559_u32.to_be_bytes());
    let seen = proxy.client().ask(&call);
    assert!(is_not_told(&seen), "{seen:?}");
}

#[test]
fn code_is_told_what_its_own_session_drew() {
    make("told_");
    let proxy = learned("told_");
    for ask in [
        "select told_last()",
        "insert into told_default (n) values (1) returning m",
    ] {
        for whole in [true, false] {
            draw(&proxy, "told_");
            let mut client = proxy.client();
            let drawn = client.value("select nextval('told_s')");
            assert_eq!(client.value(ask), drawn, "{ask}");
            draw(&proxy, "told_");
            let mut client = proxy.client();
            let text = if whole { "begin; " } else { "" };
            client.ask(&query(&format!("{text}select nextval('told_s')")));
            let expected = client.value("select last_value from told_s");
            let bytes = batch().run(ask, &[]).sync().0;
            let seen = client.ask(&bytes);
            assert!(seen.contains(&format!("D {expected}")), "{ask}: {seen:?}");
            client.ask(&query("commit"));
        }
    }
}

#[test]
fn an_insert_that_draws_nothing_does_not_make_anothers_number_ones_own() {
    observer().ask(&query(
        "create sequence foreign_s; create table foreign_t (n int)",
    ));
    for ask in ["select lastval()", "select currval('foreign_s')"] {
        for _ in 0..2 {
            let proxy = Proxy::start("size = 1");
            draw(&proxy, "foreign_");
            let mut client = Client::connect(proxy.port, &[]);
            client.ask(&query("insert into foreign_t values (1)"));
            assert!(is_not_told(&client.ask(&query(ask))), "{ask}");
            // Who asks from then on finds backends that remember nothing of others.
            let mut later = proxy.client();
            let drawn = later.value("select nextval('foreign_s')");
            assert_eq!(later.value(ask), drawn, "{ask}");
        }
    }
}
