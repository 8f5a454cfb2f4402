//! `currval` and `lastval` tell what this session drew, or are refused: never what another did.

use crate::{
    client::{batch, query},
    harness::{Proxy, Way, observer, same},
};

#[test]
fn numbers_drawn_in_a_transaction_are_told_in_it() {
    same(|stage| {
        let name = format!("drawn_{:?}", stage.way).to_lowercase();
        let mut seen = stage.query(&format!(
            "create table {name} (id serial, n int); create sequence {name}_s"
        ));
        let insert = format!("insert into {name} (n) values (1)");
        for _ in 0..2 {
            seen.extend(stage.query(&format!("{insert}; select lastval()")));
            seen.extend(stage.query("begin"));
            seen.extend(stage.query(&insert));
            seen.extend(stage.query(&format!("select currval('{name}_id_seq')")));
            seen.extend(stage.query("commit"));
            let piped = batch()
                .run(&insert, &[])
                .run("select lastval()", &[])
                .run(&format!("select nextval('{name}_s')"), &[])
                .run(&format!("select currval('{name}_s')"), &[])
                .sync();
            seen.extend(stage.step(&piped.0, 1));
        }
        // From the first time that it was asked.
        seen.extend(stage.query(&insert));
        seen.extend(stage.query("select lastval()"));
        seen.into_iter()
            .map(|line| line.replace(&name, ""))
            .collect()
    });
}

#[test]
fn a_number_that_another_session_drew_is_never_told() {
    let mut admin = observer();
    admin.ask(&query("create table another (id serial, n int)"));
    admin.ask(&query("create sequence another_s"));
    let draws = [
        query("insert into another (n) values (1)"),
        query("select nextval('another_s')"),
        batch().run("select nextval('another_s')", &[]).sync().0,
        batch()
            .run("insert into another (n) values ($1::int)", &["1"])
            .sync()
            .0,
        query("do $$ begin perform nextval('another_s'); end $$"),
    ];
    for draw in &draws {
        let proxy = Proxy::start("size = 1");
        let (mut first, mut second) = (proxy.client(), proxy.client());
        first.ask(draw);
        let expected = first.value("select last_value from another_s");
        let (mut same, mut refused) = (proxy.client(), proxy.client());
        same.ask(draw);
        // What the one before drew is there as well, until the database is known to be one where numbers are asked for.
        let seen = same.ask(&query("select lastval()"));
        assert!(seen[0].starts_with("E ERROR 55000"), "{seen:?}");
        drop(same);
        let mut same = proxy.client();
        same.ask(draw);
        // Nobody between: it is told, and the backend is kept from now on.
        assert!(same.ask(&query("select lastval()"))[1].starts_with("D "));
        drop(same);
        let seen = refused.ask(&query("select lastval()"));
        assert!(seen[0].starts_with("E ERROR 55000"), "{expected}: {seen:?}");
        first.ask(draw);
        second.ask(draw);
        for ask in [
            query("select lastval()"),
            batch().run("select lastval()", &[]).sync().0,
            query("begin; select lastval()"),
        ] {
            let seen = first.ask(&ask);
            assert!(
                seen.iter().any(|line| line.starts_with("E ERROR 55000")),
                "{seen:?}"
            );
        }
        assert_eq!(first.ask(&query("rollback")).last().unwrap(), "Z I");
        assert_eq!(first.value("select 1"), "1");
    }
}

#[test]
fn in_session_mode_numbers_are_postgresqls() {
    let mut stage = crate::harness::Stage::open(Way::Session, &[]);
    stage.query("create sequence own_s");
    assert_eq!(stage.query("select nextval('own_s')")[1], "D 1");
    stage.query("update pg_class set relname = relname where false");
    assert_eq!(
        stage.query("select currval('own_s'), lastval()")[1],
        "D 1|1"
    );
}
