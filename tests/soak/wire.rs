//! A client's socket without blocking: sends what it is told, reads frames, and can die as processes and machines do.

use crate::{client::shown, harness::PATIENCE};
use shardway::{
    auth::scram,
    wire::{
        frame::{self, HEADER},
        frontend, startup,
    },
};
use socket2::SockRef;
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Under load an answer may wait for a backend, but not longer than this.
pub(crate) const ANSWER_WITHIN: Duration = Duration::from_secs(120);

/// Why a life ended.
#[derive(Debug)]
pub(crate) enum End {
    /// It was its time.
    Died,
    /// What must not be: wrong answer, no answer, connection lost.
    Wrong(String),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        Self::Wrong(format!("connection lost: {error}"))
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Wire {
    port: u16,
    stream: TcpStream,
    buffer: Vec<u8>,
    taken: usize,
    pid: u32,
    key: Vec<u8>,
}

/// What sends cancel requests for a connection.
#[derive(Clone, Debug)]
pub(crate) struct Canceller {
    port: u16,
    pid: u32,
    key: Vec<u8>,
}

impl Wire {
    pub(crate) async fn open(port: u16) -> Result<Self, End> {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let stream = timeout(PATIENCE, TcpStream::connect(address))
            .await
            .map_err(|_elapsed| End::Wrong("no connection".to_owned()))??;
        stream.set_nodelay(true)?;
        Ok(Self {
            port,
            stream,
            buffer: Vec::new(),
            taken: 0,
            pid: 0,
            key: Vec::new(),
        })
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), End> {
        timeout(ANSWER_WITHIN, self.stream.write_all(bytes))
            .await
            .map_err(|_elapsed| End::Wrong("the proxy does not read".to_owned()))??;
        Ok(())
    }

    /// Sends while answers are read, up to that many ReadyForQuery: what a long pipeline needs.
    pub(crate) async fn send_and_read(
        &mut self,
        bytes: &[u8],
        readies: usize,
    ) -> Result<Vec<String>, End> {
        let (mut sent, mut found, mut seen) = (0, Vec::new(), 0);
        while seen < readies {
            while let Some((tag, body)) = self.buffered()? {
                seen += usize::from(tag == b'Z');
                keep(&mut found, tag, body);
                self.consume();
            }
            if seen >= readies {
                break;
            }
            let ready = async {
                tokio::select! {
                    () = async { self.stream.writable().await.unwrap_or(()) }, if sent < bytes.len() => {}
                    () = async { self.stream.readable().await.unwrap_or(()) } => {}
                }
            };
            timeout(ANSWER_WITHIN, ready)
                .await
                .map_err(|_elapsed| End::Wrong(format!("no answer after {found:?}")))?;
            if sent < bytes.len() {
                match self.stream.try_write(&bytes[sent..]) {
                    Ok(count) => sent += count,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error.into()),
                }
            }
            self.take_what_is_there()?;
        }
        Ok(found)
    }

    fn take_what_is_there(&mut self) -> Result<(), End> {
        self.buffer.drain(..std::mem::take(&mut self.taken));
        match self.stream.try_read_buf(&mut self.buffer) {
            Ok(0) => Err(End::Wrong(format!(
                "closed by the proxy{}",
                self.last_words()
            ))),
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Text of the error that may stand in what was not read as an answer.
    fn last_words(&self) -> String {
        match self.buffered() {
            Ok(Some((b'E', body))) => format!(": {}", shown(b'E', body)),
            _ => String::new(),
        }
    }

    /// The frame at the head of what has arrived, whole.
    fn buffered(&self) -> Result<Option<(u8, &[u8])>, End> {
        let held = &self.buffer[self.taken..];
        let header = frame::backend(held).map_err(|error| End::Wrong(format!("{error}")))?;
        Ok(header
            .filter(|header| held.len() >= header.size)
            .map(|header| (header.tag, &held[HEADER..header.size])))
    }

    fn consume(&mut self) {
        if let Ok(Some(header)) = frame::backend(&self.buffer[self.taken..]) {
            self.taken += header.size;
        }
    }

    /// The next frame. Nothing is lost when it is not awaited to its end.
    pub(crate) async fn frame(&mut self) -> Result<(u8, Vec<u8>), End> {
        loop {
            if let Some((tag, body)) = self.buffered()? {
                let body = body.to_vec();
                self.consume();
                return Ok((tag, body));
            }
            self.buffer.drain(..std::mem::take(&mut self.taken));
            let read = timeout(ANSWER_WITHIN, self.stream.read_buf(&mut self.buffer))
                .await
                .map_err(|_elapsed| End::Wrong("no answer".to_owned()))??;
            if read == 0 {
                return Err(End::Wrong("closed by the proxy".to_owned()));
            }
        }
    }

    /// Answers up to that many ReadyForQuery, each as a line.
    pub(crate) async fn answers(&mut self, readies: usize) -> Result<Vec<String>, End> {
        let (mut found, mut seen) = (Vec::new(), 0);
        while seen < readies {
            let (tag, body) = self.frame().await?;
            seen += usize::from(tag == b'Z');
            keep(&mut found, tag, &body);
        }
        Ok(found)
    }

    /// Reads and forgets about so many bytes, or until nothing comes for a moment.
    pub(crate) async fn nibble(&mut self, count: usize) {
        let mut room = vec![0; count.max(1)];
        drop(timeout(Duration::from_millis(20), self.stream.read(&mut room)).await);
    }

    /// Dies: the connection is closed, or reset as by a machine that is gone.
    pub(crate) fn die(self, reset: bool) {
        if reset {
            // Without it the close is as usual: just another death.
            drop(SockRef::from(&self.stream).set_linger(Some(Duration::ZERO)));
        }
    }

    /// What can cancel what this connection runs.
    pub(crate) fn canceller(&self) -> Canceller {
        Canceller {
            port: self.port,
            pid: self.pid,
            key: self.key.clone(),
        }
    }

    /// The proof of a password, up to AuthenticationOk.
    pub(crate) async fn prove(&mut self, password: &str) -> Result<(), End> {
        let (client, first) = scram::Client::begin(password, *b"eighteen bytes now");
        self.authentication(10).await?;
        self.send(&initial_response(&first)).await?;
        let challenge = self.authentication(11).await?;
        let (client, last) = client
            .handle_first(&challenge)
            .map_err(|error| End::Wrong(error.to_string()))?;
        let mut out = Vec::new();
        frontend::put(&mut out, b'p', |out| out.extend_from_slice(&last));
        self.send(&out).await?;
        let signature = self.authentication(12).await?;
        client
            .handle_final(&signature)
            .map_err(|error| End::Wrong(error.to_string()))
    }

    async fn authentication(&mut self, kind: u8) -> Result<Vec<u8>, End> {
        let (tag, body) = self.frame().await?;
        if tag != b'R' || body.get(..4) != Some(&[0, 0, 0, kind]) {
            return Err(End::Wrong(format!("login: {}", shown(tag, &body))));
        }
        Ok(body[4..].to_vec())
    }

    /// What comes between the proof and the first ReadyForQuery.
    pub(crate) async fn welcome(&mut self) -> Result<(), End> {
        loop {
            let (tag, body) = self.frame().await?;
            match tag {
                b'K' => {
                    self.pid = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    self.key = body[4..].to_vec();
                }
                b'Z' => return Ok(()),
                b'R' | b'S' | b'N' => {}
                _ => return Err(End::Wrong(format!("login: {}", shown(tag, &body)))),
            }
        }
    }
}

impl Canceller {
    /// Sends the request and waits until it was taken.
    pub(crate) async fn cancel(&self) -> Result<(), End> {
        let mut packet = Vec::new();
        startup::put_cancel_request(&mut packet, self.pid, &self.key);
        let mut wire = Wire::open(self.port).await?;
        wire.send(&packet).await?;
        match wire.frame().await {
            Err(End::Wrong(end)) if end.starts_with("closed") => Ok(()),
            Ok((tag, body)) => Err(End::Wrong(format!(
                "a cancel was answered: {}",
                shown(tag, &body)
            ))),
            Err(end) => Err(end),
        }
    }
}

/// A startup packet.
pub(crate) fn startup_packet(user: &str, database: &str, name: &str) -> Vec<u8> {
    let mut packet = Vec::new();
    let pairs = [
        ("user", user),
        ("database", database),
        ("application_name", name),
    ]
    .map(|(name, value)| (name.as_bytes(), value.as_bytes()));
    startup::put_message(&mut packet, 0, &pairs);
    packet
}

/// The first message of a proof by SCRAM.
pub(crate) fn initial_response(first: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frontend::put(&mut out, b'p', |out| {
        out.extend_from_slice(scram::MECHANISM.as_bytes());
        out.push(0);
        out.extend_from_slice(&u32::try_from(first.len()).unwrap().to_be_bytes());
        out.extend_from_slice(first);
    });
    out
}

/// An answer as a line; what is said about the session at any time, and what rows look like, are left out.
fn keep(found: &mut Vec<String>, tag: u8, body: &[u8]) {
    match tag {
        b'S' | b'N' | b'T' | b't' => {}
        b'D' | b'C' | b'Z' | b'E' | b'd' => {
            let line = shown(tag, body);
            let line = line.trim_end_matches("\\0").trim_end_matches("\\n");
            found.push(line.to_owned());
        }
        b'A' => {
            // Past the sender's number.
            let text = String::from_utf8_lossy(&body[4..]).replace('\0', " ");
            found.push(format!("A {}", text.trim_end()));
        }
        _ => found.push(char::from(tag).to_string()),
    }
}
