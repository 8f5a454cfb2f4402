//! Where a proxy that runs a reshard says which point it has reached, and waits until it may go on.

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

/// A process stands at a point; it goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Hit {
    /// Of the proxy.
    pub(crate) place: usize,
    pub(crate) point: String,
    _waits: BufReader<TcpStream>,
}

/// Listens for one proxy: what its `SHARDWAY_FAILPOINT` is.
pub(crate) async fn listen(place: usize, hits: mpsc::UnboundedSender<Hit>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let armed = format!("ask@{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let hits = hits.clone();
            tokio::spawn(async move {
                let (mut waits, mut point) = (BufReader::new(stream), String::new());
                if waits.read_line(&mut point).await.is_ok() {
                    let point = point.trim().to_owned();
                    let hit = Hit {
                        place,
                        point,
                        _waits: waits,
                    };
                    drop(hits.send(hit));
                }
            });
        }
    });
    armed
}
