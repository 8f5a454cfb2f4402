//! A client that says exactly the bytes it is told: for what no driver would send.

use crate::harness::{PATIENCE, Target};
use shardway::{
    auth::scram,
    sandbox::shop,
    wire::{backend, frame, frontend},
};
use std::{
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, TcpStream},
};

/// A connection before, during or after login.
#[derive(Debug)]
pub(crate) struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
    /// The body of BackendKeyData.
    key: Vec<u8>,
}

/// A message of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    pub(crate) tag: u8,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    /// The field of an error or notice with this code.
    pub(crate) fn field(&self, code: u8) -> Option<String> {
        let field = self
            .body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&code))?;
        Some(String::from_utf8_lossy(&field[1..]).into_owned())
    }

    /// Severity and SQLSTATE of an error.
    pub(crate) fn error(&self) -> Option<(String, String)> {
        if self.tag == b'E' {
            Some((self.field(b'V')?, self.field(b'C')?))
        } else {
            None
        }
    }
}

impl Raw {
    /// Connects and says nothing.
    pub(crate) fn connect(target: &Target) -> Self {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, target.port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self {
            stream,
            buffer: Vec::new(),
            key: Vec::new(),
        }
    }

    /// Logs in as the application and reads up to the first ReadyForQuery.
    pub(crate) fn login(target: &Target) -> Self {
        Self::login_as(target, shop::USER, shop::PASSWORD)
    }

    /// Logs in to the shop and reads up to the first ReadyForQuery.
    pub(crate) fn login_as(target: &Target, user: &str, password: &str) -> Self {
        let parameters = [("user", user), ("database", shop::DATABASE)];
        Self::login_with(target, 3 << 16, &parameters, password)
    }

    /// Logs in with this version and these parameters and reads up to the first ReadyForQuery.
    pub(crate) fn login_with(
        target: &Target,
        version: u32,
        parameters: &[(&str, &str)],
        password: &str,
    ) -> Self {
        let mut raw = Self::connect(target);
        raw.prove(version, parameters, password);
        let ready = raw.until(b'Z');
        raw.key = ready
            .iter()
            .find(|reply| reply.tag == b'K')
            .map(|reply| reply.body.clone())
            .unwrap_or_default();
        assert_eq!(
            backend::Status::decode(&ready.last().unwrap().body),
            Ok(backend::Status::Idle)
        );
        raw
    }

    /// Sends a startup packet and proves who it is by SCRAM.
    pub(crate) fn prove(&mut self, version: u32, parameters: &[(&str, &str)], password: &str) {
        self.send(&startup(version, parameters));
        let (client, first) = scram::Client::begin(password, *b"eighteen bytes now");
        self.authentication(10);
        self.password(|out| {
            out.extend_from_slice(scram::MECHANISM.as_bytes());
            out.push(0);
            out.extend_from_slice(&u32::try_from(first.len()).unwrap().to_be_bytes());
            out.extend_from_slice(&first);
        });
        let (client, last) = client.handle_first(&self.authentication(11)).unwrap();
        self.password(|out| out.extend_from_slice(&last));
        client.handle_final(&self.authentication(12)).unwrap();
    }

    /// The number and the secret that a cancel request repeats, as BackendKeyData gave them.
    pub(crate) fn cancel_key(&self) -> &[u8] {
        &self.key
    }

    /// Asks a server to cancel what this client runs, and waits until the request has been taken.
    pub(crate) fn cancel(&self, server: &Target) {
        let mut request = Self::connect(server);
        request.send(&cancel_request(&self.key));
        assert_eq!(request.rest(), (String::new(), None));
    }

    /// Sends bytes as they are. A server that has closed is seen when reading.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        drop(self.stream.write_all(bytes));
    }

    /// Sends a simple query.
    pub(crate) fn query(&mut self, text: &str) {
        let mut out = Vec::new();
        frontend::put_query(&mut out, text.as_bytes());
        self.send(&out);
    }

    /// The next message, or `None` when the server has closed.
    pub(crate) fn reply(&mut self) -> Option<Reply> {
        loop {
            if let Some(header) = frame::backend(&self.buffer).unwrap()
                && self.buffer.len() >= header.size
            {
                let message: Vec<u8> = self.buffer.drain(..header.size).collect();
                return Some(Reply {
                    tag: header.tag,
                    body: message[frame::HEADER..].to_vec(),
                });
            }
            if !self.fill() {
                assert!(
                    self.buffer.is_empty(),
                    "closed in the middle of a message: {:?}",
                    self.buffer
                );
                return None;
            }
        }
    }

    /// The messages up to and with the next one of this kind.
    pub(crate) fn until(&mut self, tag: u8) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            let reply = self
                .reply()
                .unwrap_or_else(|| panic!("closed before {:?}: {replies:?}", char::from(tag)));
            let last = reply.tag == tag;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// The tags of the messages until the server closes, and the last error among them.
    pub(crate) fn rest(&mut self) -> (String, Option<(String, String)>) {
        let (mut tags, mut error) = (String::new(), None);
        while let Some(reply) = self.reply() {
            tags.push(char::from(reply.tag));
            error = reply.error().or(error);
        }
        (tags, error)
    }

    /// One byte, as the answer to an encryption request; `None` when the server has closed.
    pub(crate) fn byte(&mut self) -> Option<u8> {
        while self.buffer.is_empty() {
            if !self.fill() {
                return None;
            }
        }
        Some(self.buffer.remove(0))
    }

    /// Whether more bytes came: not when the server has closed.
    fn fill(&mut self) -> bool {
        let mut chunk = [0; 8192];
        match self.stream.read(&mut chunk) {
            Ok(0) => false,
            Ok(count) => {
                self.buffer.extend_from_slice(&chunk[..count]);
                true
            }
            Err(error) if error.kind() == ErrorKind::ConnectionReset => false,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    fn password(&mut self, body: impl FnOnce(&mut Vec<u8>)) {
        let mut out = Vec::new();
        frontend::put(&mut out, b'p', body);
        self.send(&out);
    }

    /// What comes with an authentication request of this kind.
    fn authentication(&mut self, kind: u8) -> Vec<u8> {
        let request = self.reply().expect("an authentication request");
        assert_eq!(
            (request.tag, &request.body[..4]),
            (b'R', &[0, 0, 0, kind][..]),
            "{:?}",
            request.error()
        );
        request.body[4..].to_vec()
    }
}

/// A startup packet.
pub(crate) fn startup(version: u32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = version.to_be_bytes().to_vec();
    for (name, value) in parameters {
        for text in [name, value] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
    }
    body.push(0);
    packet(&body)
}

/// A cancel request with this number and secret.
pub(crate) fn cancel_request(key: &[u8]) -> Vec<u8> {
    packet(&[&80_877_102_u32.to_be_bytes()[..], key].concat())
}

/// A packet without a tag: its length and its body.
pub(crate) fn packet(body: &[u8]) -> Vec<u8> {
    let mut out = u32::try_from(body.len() + 4)
        .unwrap()
        .to_be_bytes()
        .to_vec();
    out.extend_from_slice(body);
    out
}
