//! What a client costs that has worked and now does nothing.

use crate::{
    client::{Client, batch, query},
    stage::{Place, Stage, TRUSTED},
};

/// Clients before the first look and between the looks. As many: what is made once is not counted, nor is what those
/// that have just stopped have not given back yet.
const IDLE: usize = 1000;
/// Bytes of the proxy's memory for each; some 2,900 where both halves go equally fast.
const BOUND: usize = 3_400;

#[test]
fn an_idle_client_costs_little_memory() {
    let stage = Stage::open(2 * IDLE);
    let mut clients = Vec::new();
    for number in 0..IDLE {
        clients.push(worked(&stage, number));
    }
    let before = stage.resident();
    for number in 0..IDLE {
        clients.push(worked(&stage, number));
    }
    let each = (stage.resident() - before) / IDLE;
    println!("{each} bytes for an idle client");
    assert!(each < BOUND, "{each} bytes for an idle client");
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
