//! Writes that a guard refuses, as it does when nobody has told an owner yet: the proxy runs them again, and their clients
//! hear one answer.

#![expect(
    clippy::disallowed_methods,
    reason = "how long a statement waits is what is claimed"
)]

use crate::{
    client::{Client, batch, query},
    harness::until,
    holding::{Held, three},
    owners::Engine,
};
use std::time::{Duration, Instant};

/// The guard of a shard: refuses writes of keys below 10.
const GUARD: &str = "\
create sequence refusals; \
create function refuse() returns trigger language plpgsql as $$ begin \
    if coalesce(new.id, old.id) < 10 then \
        perform nextval('refusals'); \
        raise exception using errcode = 'SWG01', message = 'keys of this row belong to another shard'; \
    end if; \
    return null; \
end $$; \
create trigger refuse after insert or update or delete on t for each row execute function refuse()";

impl Held {
    fn guard(&mut self, shard: usize) {
        let found = self.stand.shards[shard].ask(&query(GUARD));
        assert!(!found[0].starts_with('E'), "{found:?}");
    }

    fn unguard(&mut self, shard: usize) {
        let found = self.stand.shards[shard].ask(&query("drop trigger refuse on t"));
        assert!(!found[0].starts_with('E'), "{found:?}");
    }
}

/// Waits until writes were refused on the home shard, more often than there are any.
fn refused(held: &mut Held) {
    let home = &mut held.stand.shards[0];
    until("writes were refused", || {
        home.value("select last_value > 5 from refusals") == "t"
    });
}

#[test]
fn a_write_that_a_guard_refuses_is_run_again_until_it_may() {
    let name = "refused_again";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    held.guard(0);
    let mut plain = held.stand.proxy.client();
    plain.send(&query("update t set n = n + 1 where id = 1 returning n"));
    let mut prepared = held.other.client();
    let insert = "insert into t values ($1, 7) returning n";
    prepared.ask(&batch().parse("s", insert).sync().0);
    prepared.send(&batch().call("s", &["-1"]).sync().0);
    // A batch of its own, pipelined behind it.
    prepared.send(&query("select n from u where id = 5"));
    let mut unnamed = held.other.client();
    let delete = "delete from t where id = $1";
    unnamed.send(&batch().parse("", delete).call("", &["2"]).sync().0);
    refused(&mut held);
    held.unguard(0);
    let found = plain.answers(1);
    let said = found.iter().filter(|line| !line.starts_with('T'));
    assert_eq!(
        said.collect::<Vec<_>>(),
        ["D 1", "C UPDATE 1\\0", "Z I"],
        "one answer"
    );
    assert_eq!(plain.value("select 5"), "5", "and no other");
    let found = prepared.answers(2);
    let errors = found.iter().filter(|line| line.starts_with('E')).count();
    assert_eq!(errors, 0, "{found:?}");
    assert!(found.contains(&"D 7".to_owned()), "{found:?}");
    let found = unnamed.answers(1);
    assert!(found.contains(&"C DELETE 1\\0".to_owned()), "{found:?}");
    let home = &mut held.stand.shards[0];
    assert_eq!(
        home.value("select n from t where id = 1"),
        "1",
        "written once"
    );
    assert_eq!(home.value("select count(*) from t where id = -1"), "1");
}

#[test]
fn what_a_refused_batch_reports_is_told_when_it_is_run_again() {
    let name = "refused_reported";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    held.guard(0);
    let mut client = held.stand.proxy.client();
    let told = |line: &String| line.starts_with("S TimeZone");
    client.ask(&query("begin"));
    let found = client.ask(&query("set timezone = 'Asia/Tokyo'"));
    assert!(found.iter().any(told), "{found:?}");
    // As before is told with what a shard is reached for next.
    let found = client.ask(&query("rollback"));
    assert!(!found.iter().any(told), "{found:?}");
    client.send(&query("update t set n = n + 1 where id = 1"));
    refused(&mut held);
    held.unguard(0);
    let found = client.answers(1);
    assert_eq!(
        found.iter().filter(|line| told(line)).count(),
        1,
        "{found:?}"
    );
    assert!(found.contains(&"C UPDATE 1\\0".to_owned()), "{found:?}");
}

#[test]
fn a_refused_batch_names_its_statements_once() {
    let name = "refused_named";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    held.guard(0);
    let update = "update t set n = n + 1 where id = $1";
    let before = batch().parse("s1", "select n from t where id = $1").sync();
    let mut clients = Vec::new();
    for sent in [
        batch().parse("s2", update).call("s2", &["3"]),
        // It looks at a statement before it gives its name to another.
        batch()
            .describe("s1")
            .close("s1")
            .parse("s1", update)
            .call("s1", &["4"]),
        // The name is another statement's: this is no fault of the guard's.
        batch()
            .parse("s2", update)
            .call("s2", &["5"])
            .parse("s1", update),
    ] {
        let mut client = held.stand.proxy.client();
        client.ask(&before.0);
        client.send(&sent.sync().0);
        clients.push(client);
    }
    refused(&mut held);
    held.unguard(0);
    for (client, name) in clients.iter_mut().zip(["s2", "s1"]) {
        let found = client.answers(1);
        assert!(!found.iter().any(|line| line.starts_with('E')), "{found:?}");
        assert!(found.contains(&"C UPDATE 1\\0".to_owned()), "{found:?}");
        let found = client.ask(&batch().call(name, &["6"]).sync().0);
        assert!(found.contains(&"C UPDATE 1\\0".to_owned()), "{found:?}");
    }
    let found = clients[2].answers(1);
    assert!(found.iter().any(|line| line.contains("42P05")), "{found:?}");
    let found = clients[2].ask(&batch().call("s1", &["5"]).sync().0);
    assert!(found.contains(&"D 0".to_owned()), "{found:?}");
    let rows = "select string_agg(id::text, ',' order by id) from t where n > 0 and id < 10";
    assert_eq!(held.stand.shards[0].value(rows), "3,4,6");
}

#[test]
fn a_write_that_is_refused_goes_to_the_owner_that_its_keys_have_by_then() {
    let name = "refused_moved";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    held.guard(0);
    let mut plain = held.stand.proxy.client();
    plain.send(&query("update t set n = n + 1 where id = 1"));
    let mut prepared = held.other.client();
    let update = "update t set n = n + 1 where id = $1";
    prepared.ask(&batch().parse("s", update).sync().0);
    prepared.send(&batch().call("s", &["3"]).sync().0);
    refused(&mut held);
    // Nothing waits: their proxies learn of it by the refusal.
    held.hold(1, 60);
    held.drained(1, 2);
    Held::flip(&engine, 1);
    assert_eq!(plain.answers(1), ["C UPDATE 1\\0", "Z I"]);
    let found = prepared.answers(1);
    assert!(found.contains(&"C UPDATE 1\\0".to_owned()), "{found:?}");
    let rows = "select sum(n) from t where id in (1, 3)";
    assert_eq!(held.stand.shards[1].value(rows), "202");
    assert_eq!(held.stand.shards[0].value(rows), "0");
}

#[test]
fn what_may_not_run_twice_is_refused_with_the_reason() {
    let name = "refused_told";
    let (mut held, engine) = (Held::start(name), Engine::of(three(name)));
    held.double(&engine);
    held.known(2);
    held.guard(0);
    let told = |client: &mut Client, text: &str| {
        let found = client.ask(&query(text));
        let error = found.iter().find(|line| line.starts_with('E'));
        let error = error.map_or("", String::as_str);
        assert!(
            error.contains("40001") && error.contains("could not write keys that have moved"),
            "{text}: {found:?}"
        );
    };
    let mut client = held.stand.proxy.client();
    let begun = Instant::now();
    client.ask(&query("begin"));
    told(&mut client, "update t set n = n + 1 where id = 1");
    client.ask(&query("rollback"));
    // The first of them is committed.
    told(
        &mut client,
        "update t set n = n + 1 where id = 20; commit; update t set n = n + 1 where id = 1",
    );
    assert!(begun.elapsed() < Duration::from_secs(3), "it has waited");
    let found = client.ask(&query("select n from t where id = 20"));
    assert!(found.contains(&"D 1".to_owned()), "once: {found:?}");
    // Nobody ends it: in the end it is told.
    told(&mut client, "update t set n = n + 1 where id = 1");
    let found = client.ask(&query("select n from t where id = 1"));
    assert!(found.contains(&"D 0".to_owned()), "{found:?}");
    assert!(begun.elapsed() > Duration::from_secs(3), "it was given up");
}
