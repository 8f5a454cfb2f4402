//! The comparison: the same literals at the same bytes, refused where PostgreSQL refuses, and equal templates only for
//! equal tokens.

use crate::{
    corpus::{Mutator, pieces},
    normalize::{Lexed, Slots, Strings, normalize},
};
use pg_query::protobuf::{ScanToken, Token};
use std::collections::HashMap;

const SEED: u64 = 0x5eed_0f5c_a11e_d001;
const MUTATIONS_PER_PIECE: usize = 12;
const INVENTED: usize = 300_000;

/// PostgreSQL's scanner decodes escapes while it finds the end of a string; the lexer does not look at values.
const ABOUT_VALUES: &[&str] = &[
    "Unicode escape",
    "Unicode surrogate",
    "invalid byte sequence",
    "zero-length delimited identifier",
    "operator too long",
    "parameter number too large",
    "escape string",
    "not a valid binary digit",
    "not a valid hexadecimal digit",
];

#[test]
fn literals_are_where_postgresql_finds_them() {
    let pieces = pieces();
    assert!(
        pieces.len() > 50_000,
        "the corpus is not there: {} pieces",
        pieces.len()
    );
    let (mut mutator, mut tally, mut templates) = (Mutator(SEED), Tally::default(), HashMap::new());
    for piece in &pieces {
        check(piece, &mut tally, &mut templates);
    }
    let whole = tally.whole;
    for piece in &pieces {
        for _ in 0..MUTATIONS_PER_PIECE {
            check(&mutator.mutate(piece), &mut tally, &mut templates);
        }
    }
    for _ in 0..INVENTED {
        check(&mutator.invent(), &mut tally, &mut templates);
    }
    println!(
        "{} pieces of the corpus, {whole} of them whole; with mutations: {tally:?}, {} templates",
        pieces.len(),
        templates.len()
    );
}

#[derive(Debug, Default)]
struct Tally {
    texts: usize,
    /// Texts that both accept.
    whole: usize,
    literals: usize,
    /// Texts that both refuse.
    refused: usize,
    /// Texts that share their template with an earlier one.
    shared: usize,
}

/// `$1a`: refused by PostgreSQL since 15, read as `$1 a` by `pg_query`, whose scanner is patched here.
fn has_junk_parameter(text: &str) -> bool {
    text.match_indices('$').any(|(at, _)| {
        let name = text[at + 1..].trim_start_matches(|letter: char| letter.is_ascii_digit());
        name.len() < text.len() - at - 1
            && name.starts_with(|letter: char| letter == '_' || letter.is_alphabetic())
    })
}

/// A token stream without what a template leaves out: codes, and the text of what is no literal.
type Tokens = Vec<(i32, String)>;

fn check(text: &str, tally: &mut Tally, templates: &mut HashMap<Vec<u8>, Tokens>) {
    if text.contains('\0') {
        return;
    }
    tally.texts += 1;
    let (mut template, mut slots) = (Vec::new(), Slots::new());
    let lexed = normalize(
        text.as_bytes(),
        Strings::Standard,
        &mut template,
        &mut slots,
    );
    let tokens = match pg_query::scan(text).map(|scanned| scanned.tokens) {
        Ok(tokens) => tokens,
        Err(error) => {
            let error = error.to_string();
            let about_value = ABOUT_VALUES.iter().any(|part| error.contains(part));
            assert!(
                lexed == Lexed::Broken || about_value,
                "PostgreSQL says {error}: {text:?}"
            );
            tally.refused += 1;
            return;
        }
    };
    if lexed == Lexed::Broken {
        let parsed = pg_query::parse(text, pg_query::ParserOptions::default());
        assert!(
            parsed.is_err() || has_junk_parameter(text),
            "PostgreSQL takes {text:?}"
        );
        tally.refused += 1;
        return;
    }
    let tokens = joined(tokens);
    let literals: Vec<&ScanToken> = tokens
        .iter()
        .filter(|token| is_one_of(token, CONSTANTS))
        .collect();
    let expected: Vec<(usize, usize)> = literals
        .iter()
        .map(|token| (token.start as usize, token.end as usize))
        .collect();
    let found: Vec<(usize, usize)> = slots
        .iter()
        .map(|slot| (slot.start as usize, slot.end as usize))
        .collect();
    assert_eq!(
        found,
        expected,
        "{text:?}\n{:?}",
        expected
            .iter()
            .map(|(start, end)| &text[*start..*end])
            .collect::<Vec<_>>()
    );
    tally.whole += 1;
    tally.literals += found.len();
    let signature = signature(text, &tokens, &literals);
    if let Some(known) = templates.get(&template) {
        assert_eq!(
            *known, signature,
            "two token streams, one template: {text:?}"
        );
        tally.shared += 1;
    } else {
        templates.insert(template, signature);
    }
}

const CONSTANTS: &[Token] = &[
    Token::Sconst,
    Token::Usconst,
    Token::Bconst,
    Token::Xconst,
    Token::Iconst,
    Token::Fconst,
];

/// The tokens without comments, and with `UESCAPE '…'` as a part of the token before, as the parser takes them.
fn joined(tokens: Vec<ScanToken>) -> Vec<ScanToken> {
    let mut joined: Vec<ScanToken> = Vec::new();
    for token in tokens {
        if is_one_of(&token, &[Token::SqlComment, Token::CComment]) {
            continue;
        }
        if let [.., unicode, escape] = joined.as_mut_slice()
            && is_one_of(unicode, &[Token::Usconst, Token::Uident])
            && is_one_of(escape, &[Token::Uescape])
            && is_one_of(&token, &[Token::Sconst])
        {
            unicode.end = token.end;
            joined.pop();
            continue;
        }
        joined.push(token);
    }
    joined
}

fn signature(text: &str, tokens: &[ScanToken], literals: &[&ScanToken]) -> Tokens {
    tokens
        .iter()
        .map(|token| {
            let word = &text[token.start as usize..token.end as usize];
            let is_literal = literals.iter().any(|literal| literal.start == token.start);
            (
                token.token,
                if is_literal {
                    literal_form(word)
                } else {
                    word.to_owned()
                },
            )
        })
        .collect()
}

/// What two literals in the same place of equal templates must have in common, besides their token's code: how they
/// are written, and for whole numbers PostgreSQL's type.
fn literal_form(word: &str) -> String {
    let plain = word.replace('_', "");
    let spelling = if plain == word { "" } else { "_" };
    let base = match plain.get(..2).map(str::to_ascii_lowercase).as_deref() {
        Some("0x") => 16,
        Some("0o") => 8,
        Some("0b") => 2,
        _ => 10,
    };
    let digits = if base == 10 {
        plain.as_str()
    } else {
        &plain[2..]
    };
    match word.chars().next() {
        Some('0'..='9' | '.') => match i128::from_str_radix(digits, base) {
            Ok(value) if i32::try_from(value).is_ok() => {
                format!("int4{}", base != 10 || spelling == "_")
            }
            Ok(value) if i64::try_from(value).is_ok() => {
                format!("int8{}", base != 10 || spelling == "_")
            }
            _ => format!("numeric{}", base != 10 || spelling == "_"),
        },
        Some(first) => first.to_ascii_lowercase().to_string(),
        None => String::new(),
    }
}

fn is_one_of(token: &ScanToken, kinds: &[Token]) -> bool {
    kinds.iter().any(|kind| token.token == *kind as i32)
}
