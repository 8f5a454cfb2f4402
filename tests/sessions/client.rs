//! A client that sends exactly what a test says and reads frames: nothing is hidden by a driver.

use crate::harness::Proxy;
use shardway::wire::{
    frame::{self, HEADER},
    frontend::{self, Named, put, put_bare, put_named, put_parse},
    notice, startup,
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
    time::Duration,
};

/// An answer that does not come within this will not come.
const PATIENCE: Duration = Duration::from_secs(40);

/// One connection.
pub(crate) struct Client {
    socket: TcpStream,
    buffer: Vec<u8>,
    pub(crate) pid: u32,
    pub(crate) key: Vec<u8>,
    /// What ends with it.
    pub(crate) behind: Option<Proxy>,
}

impl Client {
    /// Logs in and waits for ReadyForQuery.
    pub(crate) fn connect(port: u16, settings: &[(&str, &str)]) -> Self {
        Self::connect_to(port, "postgres", settings)
    }

    pub(crate) fn connect_to(port: u16, database: &str, settings: &[(&str, &str)]) -> Self {
        Self::connect_as(port, "postgres", database, settings)
    }

    pub(crate) fn connect_as(
        port: u16,
        user: &str,
        database: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let mut client = Self::open(port);
        let mut pairs = vec![
            (&b"user"[..], user.as_bytes()),
            (b"database", database.as_bytes()),
        ];
        pairs.extend(
            settings
                .iter()
                .map(|(name, value)| (name.as_bytes(), value.as_bytes())),
        );
        let mut packet = Vec::new();
        startup::put_message(&mut packet, 0, &pairs);
        client.send(&packet);
        loop {
            let (tag, body) = client.frame().expect("the login is answered");
            match tag {
                b'K' => {
                    client.pid = u32::from_be_bytes([body[0], body[1], body[2], body[3]]);
                    client.key = body[4..].to_vec();
                }
                b'E' => panic!("login refused: {}", shown(tag, &body)),
                b'Z' => return client,
                _ => {}
            }
        }
    }

    /// A connection on which nothing has been said.
    pub(crate) fn open(port: u16) -> Self {
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.set_write_timeout(Some(PATIENCE)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self {
            socket,
            buffer: Vec::new(),
            pid: 0,
            key: Vec::new(),
            behind: None,
        }
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.socket.write_all(bytes).expect("the peer reads");
    }

    /// Nothing more is sent; answers are still read.
    pub(crate) fn half_close(&self) {
        self.socket.shutdown(Shutdown::Write).unwrap();
    }

    /// The next frame; `None` when the peer has closed.
    pub(crate) fn frame(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            if let Some(header) = frame::backend(&self.buffer).expect("frames")
                && self.buffer.len() >= header.size
            {
                let body = self.buffer[HEADER..header.size].to_vec();
                self.buffer.drain(..header.size);
                return Some((header.tag, body));
            }
            let mut chunk = vec![0; 1 << 16];
            match self.socket.read(&mut chunk) {
                Ok(0) => {
                    assert!(self.buffer.is_empty(), "the connection ends within a frame");
                    return None;
                }
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no answer: {error}; so far {:?}", self.buffer),
            }
        }
    }

    /// As [`Client::frame`], where the connection may end within a frame.
    pub(crate) fn frame_or_cut(&mut self) -> Option<(u8, Vec<u8>)> {
        loop {
            match frame::backend(&self.buffer).expect("frames") {
                Some(header) if self.buffer.len() >= header.size => return self.frame(),
                _ => {}
            }
            let mut chunk = vec![0; 1 << 16];
            match self.socket.read(&mut chunk) {
                Ok(0) => return None,
                Ok(count) => self.buffer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return None,
                Err(error) => panic!("no end: {error}"),
            }
        }
    }

    /// A second handle, to send from another thread.
    pub(crate) fn writer(&self) -> TcpStream {
        self.socket.try_clone().unwrap()
    }

    /// Whether bytes of an answer are there.
    pub(crate) fn has_answer(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let found = self.socket.peek(&mut [0]).is_ok();
        self.socket.set_nonblocking(false).unwrap();
        found
    }

    /// Answers as text, up to and with the given number of ReadyForQuery, or the end.
    pub(crate) fn answers(&mut self, readies: usize) -> Vec<String> {
        let (mut seen, mut out) = (0, Vec::new());
        while seen < readies {
            let Some((tag, body)) = self.frame() else {
                out.push("closed".to_owned());
                return out;
            };
            seen += usize::from(tag == b'Z');
            out.push(shown(tag, &body));
        }
        out
    }

    /// Answers as text up to and with the first that begins so.
    pub(crate) fn until(&mut self, start: &str) -> Vec<String> {
        let mut out: Vec<String> = Vec::new();
        while !out.last().is_some_and(|last| last.starts_with(start)) {
            let (tag, body) = self
                .frame()
                .unwrap_or_else(|| panic!("closed before {start}: {out:?}"));
            out.push(shown(tag, &body));
        }
        out
    }

    /// Whole frames with their headers, byte by byte, up to and with one ReadyForQuery.
    pub(crate) fn bytes(&mut self, sent: &[u8]) -> Vec<u8> {
        self.send(sent);
        let mut out = Vec::new();
        while let Some((tag, body)) = self.frame() {
            put(&mut out, tag, |out| out.extend_from_slice(&body));
            if tag == b'Z' {
                break;
            }
        }
        out
    }

    /// A byte that is no frame: the answer to a request for encryption.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        assert!(self.buffer.is_empty(), "frames: {:?}", self.buffer);
        let mut byte = [0];
        (self.socket.read(&mut byte).unwrap() == 1).then(|| byte[0])
    }

    /// Whether the peer closes, whatever it says before, without a message of this type.
    pub(crate) fn closes_without(&mut self, tag: u8) -> bool {
        let mut said = Vec::new();
        match self.socket.read_to_end(&mut said) {
            Err(error) if error.kind() != ErrorKind::ConnectionReset => false,
            _ => said.first() != Some(&tag),
        }
    }

    /// Sends and reads up to two ReadyForQuery.
    pub(crate) fn ask2(&mut self, bytes: &[u8]) -> Vec<String> {
        self.send(bytes);
        self.answers(2)
    }

    /// Sends and reads up to one ReadyForQuery.
    pub(crate) fn ask(&mut self, bytes: &[u8]) -> Vec<String> {
        self.send(bytes);
        self.answers(1)
    }

    /// A simple query's first value.
    pub(crate) fn value(&mut self, sql: &str) -> String {
        let answers = self.ask(&query(sql));
        let row = answers.iter().find_map(|answer| answer.strip_prefix("D "));
        row.unwrap_or_else(|| panic!("{sql}: {answers:?}"))
            .to_owned()
    }

    /// Asks to cancel what this client runs.
    pub(crate) fn cancel(&self, port: u16) {
        let mut packet = Vec::new();
        startup::put_cancel_request(&mut packet, self.pid, &self.key);
        let mut other = Self::open(port);
        other.send(&packet);
        assert!(other.frame().is_none());
    }
}

/// A frame as one line. Errors and notices by severity, SQLSTATE and message: place and line are the server's own.
pub(crate) fn shown(tag: u8, body: &[u8]) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let part = |code| notice::field(body, code).map(text).unwrap_or_default();
    match tag {
        b'E' | b'N' => format!(
            "{} {} {} {}",
            char::from(tag),
            part(b'V'),
            part(b'C'),
            part(b'M')
        ),
        b'D' => {
            let mut rest = &body[2..];
            let mut values = Vec::new();
            while let Some((length, more)) = rest.split_first_chunk::<4>() {
                match usize::try_from(i32::from_be_bytes(*length)) {
                    Ok(length) => {
                        values.push(text(&more[..length]));
                        rest = &more[length..];
                    }
                    Err(_null) => {
                        values.push("NULL".to_owned());
                        rest = more;
                    }
                }
            }
            format!("D {}", values.join("|"))
        }
        _ => format!("{} {}", char::from(tag), text(body).escape_debug()),
    }
}

pub(crate) fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    frontend::put_query(&mut out, sql.as_bytes());
    out
}

/// Messages of the extended protocol, one after the other.
#[derive(Clone, Default)]
pub(crate) struct Batch(pub(crate) Vec<u8>);

impl Batch {
    pub(crate) fn parse(mut self, name: &str, sql: &str) -> Self {
        put_parse(&mut self.0, name.as_bytes(), sql.as_bytes(), b"");
        self
    }

    pub(crate) fn bind(mut self, portal: &str, statement: &str, values: &[&str]) -> Self {
        put(&mut self.0, b'B', |out| {
            for name in [portal, statement] {
                out.extend_from_slice(name.as_bytes());
                out.push(0);
            }
            out.extend_from_slice(&[0, 0]);
            out.extend_from_slice(&u16::try_from(values.len()).unwrap().to_be_bytes());
            for value in values {
                out.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
                out.extend_from_slice(value.as_bytes());
            }
            out.extend_from_slice(&[0, 0]);
        });
        self
    }

    pub(crate) fn describe(mut self, statement: &str) -> Self {
        put_named(&mut self.0, b'D', Named::Statement(statement.as_bytes()));
        self
    }

    pub(crate) fn describe_portal(mut self, portal: &str) -> Self {
        put_named(&mut self.0, b'D', Named::Portal(portal.as_bytes()));
        self
    }

    pub(crate) fn execute(mut self, portal: &str, rows: u32) -> Self {
        put(&mut self.0, b'E', |out| {
            out.extend_from_slice(portal.as_bytes());
            out.push(0);
            out.extend_from_slice(&rows.to_be_bytes());
        });
        self
    }

    pub(crate) fn close(mut self, statement: &str) -> Self {
        put_named(&mut self.0, b'C', Named::Statement(statement.as_bytes()));
        self
    }

    pub(crate) fn close_portal(mut self, portal: &str) -> Self {
        put_named(&mut self.0, b'C', Named::Portal(portal.as_bytes()));
        self
    }

    pub(crate) fn query(mut self, sql: &str) -> Self {
        self.0.extend(query(sql));
        self
    }

    /// A message without a body: Sync, Flush, Terminate, CopyDone.
    pub(crate) fn bare(mut self, tag: u8) -> Self {
        put_bare(&mut self.0, tag);
        self
    }

    pub(crate) fn sync(self) -> Self {
        self.bare(b'S')
    }

    pub(crate) fn flush(self) -> Self {
        self.bare(b'H')
    }

    pub(crate) fn copy_data(mut self, text: &str) -> Self {
        put(&mut self.0, b'd', |out| {
            out.extend_from_slice(text.as_bytes());
        });
        self
    }

    pub(crate) fn copy_fail(mut self, text: &str) -> Self {
        put(&mut self.0, b'f', |out| {
            out.extend_from_slice(text.as_bytes());
            out.push(0);
        });
        self
    }

    /// Parse, Bind and Execute of the unnamed statement.
    pub(crate) fn run(self, sql: &str, values: &[&str]) -> Self {
        self.parse("", sql).bind("", "", values).execute("", 0)
    }

    /// Bind and Execute of a named statement.
    pub(crate) fn call(self, statement: &str, values: &[&str]) -> Self {
        self.bind("", statement, values).execute("", 0)
    }
}

pub(crate) fn batch() -> Batch {
    Batch::default()
}
