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
        let tag = if matches!(self.severity, "ERROR" | "FATAL" | "PANIC") { b'E' } else { b'N' };
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
