//! ErrorResponse and NoticeResponse: fields by code, read and written as bytes.

use super::{frame::Body, frontend::put};

/// The fields of an error or notice that the proxy itself words. Chapter 54.8 of the manual.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// "ERROR", "FATAL", "WARNING", "NOTICE".
    pub severity: &'static str,
    /// Five characters.
    pub sqlstate: &'static str,
    pub message: String,
    pub detail: Option<String>,
    pub hint: Option<String>,
}

impl Notice {
    /// Appends it as ErrorResponse (`E`) or, for warnings and notices, NoticeResponse (`N`).
    pub fn put(&self, out: &mut Vec<u8>) {
        let tag = if matches!(self.severity, "ERROR" | "FATAL" | "PANIC") {
            b'E'
        } else {
            b'N'
        };
        put(out, tag, |out| {
            let mut field = |code: u8, text: &str| {
                out.push(code);
                out.extend(text.bytes().filter(|byte| *byte != 0));
                out.push(0);
            };
            field(b'S', self.severity);
            field(b'V', self.severity);
            field(b'C', self.sqlstate);
            field(b'M', &self.message);
            if let Some(detail) = &self.detail {
                field(b'D', detail);
            }
            if let Some(hint) = &self.hint {
                field(b'H', hint);
            }
            out.push(0);
        });
    }
}

/// An ErrorResponse: ours, or a server's passed on byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Words {
    Ours(Notice),
    /// The body of a server's ErrorResponse.
    Servers(Vec<u8>),
}

impl From<Notice> for Words {
    fn from(notice: Notice) -> Self {
        Self::Ours(notice)
    }
}

impl Words {
    /// Appends it as ErrorResponse.
    pub fn put(&self, out: &mut Vec<u8>) {
        match self {
            Self::Ours(notice) => notice.put(out),
            Self::Servers(body) => put(out, b'E', |out| out.extend_from_slice(body)),
        }
    }

    /// The same with severity FATAL: the connection ends with it.
    #[must_use]
    pub fn fatal(self) -> Self {
        match self {
            Self::Ours(notice) => Self::Ours(Notice {
                severity: "FATAL",
                ..notice
            }),
            Self::Servers(body) => {
                let mut fatal = Vec::with_capacity(body.len() + 2);
                let mut rest = Body::new(&body);
                while let Ok(code) = rest.byte() {
                    fatal.push(code);
                    let Ok(text) = (if code == 0 { break } else { rest.cstr() }) else {
                        break;
                    };
                    fatal.extend_from_slice(if matches!(code, b'S' | b'V') {
                        b"FATAL"
                    } else {
                        text
                    });
                    fatal.push(0);
                }
                Self::Servers(fatal)
            }
        }
    }
}

/// The body of an ErrorResponse with one more line where it says how it came to the error; one that does not say so stays
/// as it is.
#[must_use]
pub fn with_context(body: &[u8], line: &str) -> Vec<u8> {
    let mut made = Vec::with_capacity(body.len() + line.len() + 1);
    let mut rest = Body::new(body);
    while let Ok(code) = rest.byte() {
        made.push(code);
        let Ok(text) = (if code == 0 { break } else { rest.cstr() }) else {
            break;
        };
        made.extend_from_slice(text);
        if code == b'W' {
            made.push(b'\n');
            made.extend(line.bytes().filter(|byte| *byte != 0));
        }
        made.push(0);
    }
    made
}

/// A field of an ErrorResponse or NoticeResponse body; fields are optional, unknown ones are skipped.
#[must_use]
pub fn field(body: &[u8], code: u8) -> Option<&[u8]> {
    let mut body = Body::new(body);
    loop {
        match body.byte() {
            Ok(0) | Err(_) => return None,
            Ok(found) => {
                let text = body.cstr().ok()?;
                if found == code {
                    return Some(text);
                }
            }
        }
    }
}
