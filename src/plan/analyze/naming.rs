//! What the words of a text ask for, without its tree: what is the running transaction's own, and numbers of types and relations.
//!
//! A word that only looks like one of these may cost something; one that is one is never missed. Words inside literals do not count.

use crate::sql::normalize::Slot;

/// Whether a text asks for what is the running transaction's own: its time, its number, its snapshot. Such a statement
/// must run in the transaction, as one that writes does. Words inside literals do not count; words that only look like
/// one of these do, which binds a transaction earlier than need be and is never wrong.
pub(super) fn names_transaction(text: &[u8], slots: &[Slot]) -> bool {
    const CALLS: [&[u8]; 9] = [
        b"now",
        b"age",
        b"transaction_timestamp",
        b"txid_current",
        b"txid_current_if_assigned",
        b"txid_current_snapshot",
        b"pg_current_xact_id",
        b"pg_current_xact_id_if_assigned",
        b"pg_current_snapshot",
    ];
    const WORDS: [&[u8]; 6] = [
        b"current_timestamp",
        b"current_date",
        b"current_time",
        b"localtime",
        b"localtimestamp",
        b"pg_export_snapshot",
    ];
    let mut found = false;
    each_word(text, slots, |word, rest| {
        let called = || rest.trim_ascii_start().first() == Some(&b'(');
        found |= WORDS.contains(&word) || (CALLS.contains(&word) && called());
    });
    found
}

/// Whether a text may ask for numbers of types or relations: it names a system catalog, or a function or type that tells
/// them. What only looks so runs on the home shard without need.
pub(super) fn shows_oids(text: &[u8], slots: &[Slot]) -> bool {
    const WORDS: [&[u8]; 6] = [
        b"regtype",
        b"regclass",
        b"to_regtype",
        b"to_regclass",
        b"format_type",
        b"tableoid",
    ];
    let mut found = false;
    each_word(text, slots, |word, _| {
        found |= word.starts_with(b"pg_") || WORDS.contains(&word);
    });
    found
}

/// Every word outside of literals, in lower case, and what follows it.
fn each_word(text: &[u8], slots: &[Slot], mut each: impl FnMut(&[u8], &[u8])) {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80;
    let mut slots = slots.iter().peekable();
    let mut at = 0;
    while at < text.len() {
        if let Some(slot) = slots.next_if(|slot| slot.start as usize <= at) {
            at = at.max(slot.end as usize);
            continue;
        }
        let length = text[at..].iter().take_while(|byte| is_word(**byte)).count();
        if length == 0 {
            at += 1;
            continue;
        }
        let word = text[at..at + length].to_ascii_lowercase();
        at += length;
        each(&word, &text[at..]);
    }
}
