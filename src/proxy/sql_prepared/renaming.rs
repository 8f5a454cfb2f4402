//! Texts as backends get them: with their own names of statements in the client's places. Pure.
//!
//! What must stay true: of an error about such a text the client is told its own names, and places in its own text.

use super::super::prepared::{Prepared, ServerName};
use crate::{
    sql::executions::Named,
    wire::{frame::Body, frontend::put},
};
use smallvec::SmallVec;
use std::sync::Arc;

/// Statements that a backend must have.
pub(super) type Needs = SmallVec<[Arc<Prepared>; 1]>;

/// What is called differently in the text that was sent.
#[derive(Clone, Debug, Default)]
pub(in crate::proxy) struct Renamed {
    names: SmallVec<[(ServerName, Box<[u8]>); 1]>,
    /// Behind which character of the text that was sent it is longer than the client's, and by how much in all.
    longer: SmallVec<[(usize, isize); 1]>,
    /// What the text prepares, by the client's names.
    pub(super) prepares: Vec<(String, Arc<Prepared>)>,
    /// What the text deallocates on the backend, in order.
    pub(super) takes: Vec<u128>,
}

/// Changes of a text, made from its start to its end.
pub(super) struct Rewriting<'t> {
    text: &'t str,
    copied: usize,
    made: String,
    pub(super) renamed: Renamed,
}

impl<'t> Rewriting<'t> {
    pub(super) fn new(text: &'t str) -> Self {
        Self {
            text,
            copied: 0,
            made: String::with_capacity(text.len() + 35),
            renamed: Renamed::default(),
        }
    }

    /// Puts the backend's name in the client's place.
    pub(super) fn rename(&mut self, named: &Named, client: &str, server: ServerName) {
        let place = named.place.clone();
        self.made.push_str(&self.text[self.copied..place.start]);
        self.made
            .push_str(&String::from_utf8_lossy(server.as_bytes()));
        self.copied = place.end;
        let (sent, given) = (
            self.made.chars().count(),
            self.text[..place.end].chars().count(),
        );
        self.renamed
            .longer
            .push((sent, sent.cast_signed() - given.cast_signed()));
        self.renamed.names.push((server, client.as_bytes().into()));
    }

    pub(super) fn done(mut self) -> (Vec<u8>, Renamed) {
        self.made.push_str(&self.text[self.copied..]);
        (self.made.into_bytes(), self.renamed)
    }
}

impl Renamed {
    /// Another text is sent behind this one, in the same batch.
    pub(super) fn follows(&mut self, other: &Self) {
        self.names.extend(other.names.iter().cloned());
        self.longer.clone_from(&other.longer);
    }

    /// An ErrorResponse as the client is told of it: with its own names, and places in its own text. `None`: as it is.
    pub(super) fn restated(&self, body: &[u8]) -> Option<Vec<u8>> {
        let mut fields = Body::new(body);
        let mut made = Vec::new();
        let mut whole = false;
        put(&mut made, b'E', |out| {
            while let Ok(code) = fields.byte() {
                out.push(code);
                if code == 0 {
                    whole = true;
                    break;
                }
                let Ok(text) = fields.cstr() else { break };
                match code {
                    b'P' => out.extend_from_slice(&self.position(text)),
                    b'M' | b'D' | b'H' | b'W' => out.extend_from_slice(&self.told(text)),
                    _ => out.extend_from_slice(text),
                }
                out.push(0);
            }
        });
        whole.then_some(made)
    }

    fn position(&self, text: &[u8]) -> Vec<u8> {
        let number = std::str::from_utf8(text)
            .ok()
            .and_then(|text| text.parse::<usize>().ok());
        let Some(number) = number else {
            return text.to_vec();
        };
        let longer = self.longer.iter().rev().find(|(from, _)| number > *from);
        let longer = longer.map_or(0, |(_, longer)| *longer);
        number
            .saturating_add_signed(-longer)
            .to_string()
            .into_bytes()
    }

    fn told(&self, text: &[u8]) -> Vec<u8> {
        let mut told = text.to_vec();
        for (server, client) in &self.names {
            let server = server.as_bytes();
            while let Some(at) = memchr::memmem::find(&told, server) {
                told.splice(at..at + server.len(), client.iter().copied());
            }
        }
        told
    }
}

/// The names that a text has given and taken so far.
#[derive(Default)]
pub(super) struct Names {
    pub(super) known: Vec<(String, Option<Arc<Prepared>>)>,
    /// Whether it has forgotten all that was there before it.
    pub(super) all_forgotten: bool,
}

/// Where a statement comes from that a text names.
pub(super) enum Found {
    /// The session had it before.
    Before(Arc<Prepared>),
    /// The text itself prepares it.
    Within(Arc<Prepared>),
    Nowhere,
}

/// A text whose names are being found.
pub(super) struct Resolving<'t> {
    pub(super) rewriting: Rewriting<'t>,
    pub(super) needs: Needs,
}

impl Resolving<'_> {
    /// Names what was found as backends do.
    pub(super) fn name(
        &mut self,
        place: &Named,
        name: &str,
        found: Found,
    ) -> Option<Arc<Prepared>> {
        let statement = match found {
            Found::Nowhere => return None,
            Found::Within(statement) => statement,
            Found::Before(statement) => {
                self.needs.push(Arc::clone(&statement));
                statement
            }
        };
        self.rewriting.rename(place, name, statement.server_name());
        Some(statement)
    }

    /// The text prepares it under the name that it has on backends.
    pub(super) fn prepare(&mut self, place: &Named, name: &str, prepared: &Arc<Prepared>) {
        self.rewriting.rename(place, name, prepared.server_name());
        let prepares = &mut self.rewriting.renamed.prepares;
        prepares.push((name.to_owned(), Arc::clone(prepared)));
    }
}
