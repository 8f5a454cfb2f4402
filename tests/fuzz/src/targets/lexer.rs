//! Lexes texts: nothing panics, literals are in order and in the text, and a text with other literals of the same
//! kinds in their places has the same template and as many literals.
use crate::normalize::{Lexed, Slots, Strings, normalize};

/// The target.
pub fn check(bytes: &[u8]) {
    let Some((mode, text)) = bytes.split_first() else {
        return;
    };
    let strings = if mode % 2 == 0 {
        Strings::Standard
    } else {
        Strings::Escapes
    };
    let (mut template, mut slots) = (Vec::new(), Slots::new());
    if normalize(text, strings, &mut template, &mut slots) == Lexed::Broken {
        assert!(slots.is_empty() && template[1..] == *text);
        return;
    }
    let (mut other, mut copied) = (Vec::new(), 0);
    let mut literals = Vec::new();
    for slot in &slots {
        let range = slot.range();
        assert!(copied <= range.start && range.start < range.end && range.end <= text.len());
        other.extend_from_slice(&text[copied..range.start]);
        literals.push(another(&text[range.clone()]));
        other.extend_from_slice(&literals[literals.len() - 1]);
        copied = range.end;
    }
    other.extend_from_slice(&text[copied..]);
    let (mut other_template, mut other_slots) = (Vec::new(), Slots::new());
    assert_eq!(
        normalize(&other, strings, &mut other_template, &mut other_slots),
        Lexed::Whole
    );
    assert_eq!(template, other_template);
    assert_eq!(slots.len(), other_slots.len());
    for (slot, literal) in other_slots.iter().zip(&literals) {
        assert_eq!(&other[slot.range()], literal);
    }
}

/// A literal of the same kind, with another value; it begins like the first, so that it stays a token by itself.
fn another(literal: &[u8]) -> Vec<u8> {
    let new: &[u8] = match (literal[0], literal.get(1)) {
        (b'\'', _) => b"'it''s'",
        (b'$', _) => b"$q$it's $$$q$",
        (b'e' | b'E', _) => b"E'it\\'s'",
        (b'b' | b'B', _) => b"B'101'",
        (b'x' | b'X', _) => b"x'1f'",
        (b'u' | b'U', _) => b"U&'it''s' UESCAPE '#'",
        (b'0', Some(b'x' | b'X' | b'o' | b'O' | b'b' | b'B')) => return literal.to_vec(),
        _ if literal.contains(&b'_') => return literal.to_vec(),
        (b'.', _) => b".25",
        _ if literal.iter().any(|byte| !byte.is_ascii_digit()) => b"2.75",
        _ => match std::str::from_utf8(literal).map(str::parse::<i128>) {
            Ok(Ok(value)) if i32::try_from(value).is_ok() => b"0007",
            Ok(Ok(value)) if i64::try_from(value).is_ok() => b"3000000000",
            _ => b"123456789012345678901234567890",
        },
    };
    new.to_vec()
}
