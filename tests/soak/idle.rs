//! What a client costs that has worked and now does nothing.

use std::{thread, time::Duration};

use crate::{
    client::{Client, batch, query},
    stage::{Place, Stage, TRUSTED},
};

/// Clients at a time. What so many need while they work is what the proxy keeps for those that come next, whether the
/// machine is fast at the moment or slow; so it is not taken for what idle clients cost.
const TOGETHER: usize = 100;
/// How long they think before others come: longer than a session waits before it gives back what only work needs.
const THINK: Duration = Duration::from_millis(2_500);
/// Bytes of the proxy's memory for each; some 2,900 are usual.
const BOUND: usize = 3_400;

#[test]
fn an_idle_client_costs_little_memory() {
    let (first, then) = (4 * TOGETHER, 10 * TOGETHER);
    let stage = Stage::open(first + then);
    let mut clients = Vec::new();
    come(&stage, &mut clients, first);
    let before = stage.resident();
    come(&stage, &mut clients, then);
    let each = (stage.resident() - before) / then;
    println!("{each} bytes for an idle client");
    assert!(each < BOUND, "{each} bytes for an idle client");
}

/// As many more clients that have worked, some at a time, and think now.
fn come(stage: &Stage, clients: &mut Vec<Client>, many: usize) {
    for _ in 0..many / TOGETHER {
        for _ in 0..TOGETHER {
            clients.push(worked(stage, clients.len()));
        }
        thread::sleep(THINK);
    }
}

/// A client that has done what applications do. What it has asked others ask too: cached plans are not its own.
fn worked(stage: &Stage, number: usize) -> Client {
    let name = format!("worker {number}");
    let settings = [("application_name", &*name)];
    let database = Place::Sharded.database();
    let mut client = Client::connect_as(stage.proxy.port, TRUSTED, database, &settings);
    let id = (number % 10).to_string();
    client.ask(&query(&format!("select body from items where id = {id}")));
    let read = "select body from items where id = $1";
    client.ask(&batch().run(read, &[&id]).sync().0);
    client.ask(&batch().parse("read", read).call("read", &[&id]).sync().0);
    client.ask(&query("begin"));
    client.ask(&query(&format!(
        "update items set body = 'x' where id = {id}"
    )));
    client.ask(&query("commit"));
    let many = client.ask(&query(
        "select n, repeat('x', 100) from generate_series(1, 500) n",
    ));
    assert_eq!(many.len(), 503);
    client
}
