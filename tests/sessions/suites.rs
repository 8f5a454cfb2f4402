//! What third-party suites (`make clients`) have found, message by message.

use crate::{
    client::{batch, query, shown},
    harness::{Proxy, Stage, observer, same, until},
};

/// What comes up to the end of the connection.
fn to_the_end(stage: &mut Stage) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some((tag, body)) = stage.client.frame() {
        seen.push(shown(tag, &body));
    }
    seen
}

/// psycopg2: `test_copy_from_segfault`. A backend that went on waiting for data would keep its locks for ever.
#[test]
fn a_client_that_leaves_in_the_middle_of_copy_in_leaves_no_backend_behind() {
    let half_a_frame = [b'd', 0, 0];
    let ways_to_leave: [(&str, &[u8]); 4] = [
        ("terminate", &batch().bare(b'X').0),
        ("silently", &[]),
        ("within_a_header", &half_a_frame),
        ("within_a_message", &batch().copy_data("1\n2\n").0[..7]),
    ];
    for (name, last_words) in ways_to_leave {
        let proxy = Proxy::start("size = 1");
        let mut observer = observer();
        let table = format!("left_{name}");
        observer.ask(&query(&format!("create table {table} (n int)")));
        let mut client = proxy.client();
        client.send(&query(&format!("copy {table} from stdin")));
        client.until("G");
        client.send(&batch().copy_data("1\n").0);
        client.send(last_words);
        client.half_close();
        until(name, || {
            observer.value(&format!(
                "select count(*) from pg_stat_activity where query like 'copy {table} %'"
            )) == "0"
        });
        assert_eq!(
            observer.value(&format!("select count(*) from {table}")),
            "0",
            "{name}"
        );
        let mut next = proxy.client();
        assert_eq!(next.value("select 1"), "1");
    }
}

#[test]
fn a_message_that_has_no_place_in_copy_in_ends_the_session() {
    same(|stage| {
        let name = format!("misplaced_{:?}", stage.way).to_lowercase();
        stage.query(&format!("create table {name} (n int)"));
        stage
            .client
            .send(&query(&format!("copy {name} from stdin")));
        let mut seen = stage.client.until("G");
        stage
            .client
            .send(&batch().copy_data("1\n").query("select 1").0);
        seen.extend(to_the_end(stage));
        seen.push(observer().value(&format!("select count(*) from {name}")));
        seen
    });
}
