//! What stands between a proxy and a server, and can cut all connections between them.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Passes bytes on as they come.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) port: u16,
    cuts: watch::Sender<u64>,
    closed: Arc<AtomicBool>,
}

impl Relay {
    /// To a port of this machine.
    pub(crate) async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (cuts, cut) = watch::channel(0);
        let closed = Arc::new(AtomicBool::new(false));
        tokio::spawn(listen(listener, server, cut, Arc::clone(&closed)));
        Self { port, cuts, closed }
    }

    /// Ends what is open, on both sides at once, and lets nobody in until [`Relay::open`].
    pub(crate) fn cut(&self) {
        self.closed.store(true, Ordering::SeqCst);
        self.cuts.send_modify(|number| *number += 1);
    }

    pub(crate) fn open(&self) {
        self.closed.store(false, Ordering::SeqCst);
    }
}

async fn listen(
    listener: TcpListener,
    server: u16,
    cut: watch::Receiver<u64>,
    closed: Arc<AtomicBool>,
) {
    while let Ok((mut client, _)) = listener.accept().await {
        let mut cut = cut.clone();
        cut.mark_unchanged();
        if closed.load(Ordering::SeqCst) {
            continue;
        }
        tokio::spawn(async move {
            let Ok(mut server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
                return;
            };
            drop((client.set_nodelay(true), server.set_nodelay(true)));
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut client, &mut server) => {}
                _ = cut.changed() => {}
            }
        });
    }
}
