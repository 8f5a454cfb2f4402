//! A shared listener whose server says nothing any more, without closing, is noticed: its sessions are told. What is on
//! its way from a server when a reload brings other listeners is heard.

use crate::{
    client::query,
    harness::{Proxy, observer, postgres, until},
};
use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    sync::{Arc, Condvar, Mutex},
    thread,
};

/// A way to the server, which can be closed for what is said to the first shared listener that went it.
#[derive(Default)]
struct Way {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    traffic: Traffic,
    /// Shared listeners that went this way.
    listeners: usize,
    /// How often the first of them has said something.
    said: usize,
}

/// What becomes of what the server says to the first listener.
#[derive(Clone, Copy, Default, PartialEq)]
enum Traffic {
    #[default]
    Passes,
    /// Is lost.
    Lost,
    /// Waits until it may pass.
    Waits,
}

impl Way {
    fn let_be(&self, traffic: Traffic) {
        self.state.lock().unwrap().traffic = traffic;
        self.changed.notify_all();
    }

    fn said(&self) -> usize {
        self.state.lock().unwrap().said
    }

    /// Something was said to the server; `number` is that of the listener, if it is known to be one.
    fn hears(&self, bytes: &[u8], number: &Mutex<Option<usize>>) {
        let name = b"shardway listener";
        let mut state = self.state.lock().unwrap();
        let mut number = number.lock().unwrap();
        if number.is_none() && bytes.windows(name.len()).any(|word| word == name) {
            *number = Some(state.listeners);
            state.listeners += 1;
        }
        state.said += usize::from(*number == Some(0));
    }

    /// Whether what the server says passes; waits where it must.
    fn lets(&self, number: &Mutex<Option<usize>>) -> bool {
        if *number.lock().unwrap() != Some(0) {
            return true;
        }
        let state = self.state.lock().unwrap();
        let waits = |state: &mut State| state.traffic == Traffic::Waits;
        let state = self.changed.wait_while(state, waits).unwrap();
        state.traffic == Traffic::Passes
    }
}

fn way() -> (Arc<Way>, String) {
    let server_port = postgres().port();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let way = Arc::new(Way::default());
    let own = Arc::clone(&way);
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.unwrap();
            let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server_port)).unwrap();
            let (there, back) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            let number = Arc::new(Mutex::new(None));
            let (way, of) = (Arc::clone(&own), Arc::clone(&number));
            thread::spawn(move || {
                pass(there, server, |bytes| {
                    way.hears(bytes, &of);
                    true
                });
            });
            let way = Arc::clone(&own);
            thread::spawn(move || pass(back, client, |_| way.lets(&number)));
        }
    });
    let databases = format!(
        "[databases.postgres]\nshards.s0 = {{ primary = \"postgres://127.0.0.1:{port}/postgres?sslmode=disable\" }}\n"
    );
    (way, databases)
}

fn pass(mut from: TcpStream, mut to: TcpStream, mut passes: impl FnMut(&[u8]) -> bool) {
    let mut bytes = [0; 4096];
    while let Ok(count) = from.read(&mut bytes) {
        if count == 0 {
            break;
        }
        if passes(&bytes[..count]) && to.write_all(&bytes[..count]).is_err() {
            break;
        }
    }
    let _closed = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn a_listener_that_is_dead_without_saying_so_is_noticed() {
    let (way, databases) = way();
    let proxy = Proxy::with("size = 2\nconnect_timeout = \"5s\"", &databases);
    let (mut listens, mut other) = (proxy.client(), proxy.client());
    assert_eq!(listens.ask(&query("listen beats")), ["C LISTEN\\0", "Z I"]);
    other.ask(&query("notify beats, 'first'"));
    until("it is heard", || {
        let seen = listens.ask(&query("select 1"));
        seen.iter().any(|line| line.contains("first"))
    });
    way.let_be(Traffic::Lost);
    until("the session is told", || {
        listens.send(&query("select 1"));
        loop {
            match listens.frame() {
                None => return true,
                Some((b'E', body)) => {
                    let shown = crate::client::shown(b'E', &body);
                    assert!(shown.starts_with("E FATAL 08006"), "{shown}");
                    return true;
                }
                Some((b'Z', _)) => return false,
                Some(_) => {}
            }
        }
    });
}

#[test]
fn what_is_on_its_way_when_a_reload_comes_is_heard() {
    let (way, databases) = way();
    let proxy = Proxy::with("size = 2", &databases);
    let mut listens = proxy.client();
    assert_eq!(listens.ask(&query("listen late")), ["C LISTEN\\0", "Z I"]);
    way.let_be(Traffic::Waits);
    observer().ask(&query("notify late, 'on its way'"));
    let said = way.said();
    proxy.reload("size = 2", "size = 3");
    // Either that it is to say what is there, or that it need not listen any more.
    until("the old listener is told something", || way.said() > said);
    way.let_be(Traffic::Passes);
    until("it is heard", || {
        let seen = listens.ask(&query("select 1"));
        seen.iter().any(|line| line.contains("on its way"))
    });
}
