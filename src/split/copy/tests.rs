//! What is cut out of streams that come in pieces of any size.

use super::*;
use proptest::prelude::*;

#[derive(Debug, PartialEq, Eq)]
enum Part {
    Everyone(Vec<u8>),
    Row(Vec<u8>, Option<Vec<u8>>),
    Default(Vec<u8>),
}

fn cut(options: &Options, column: usize, pieces: &[&[u8]]) -> Result<Vec<Part>, Fault> {
    let mut splitter = Splitter::new(options.clone(), column, 1 << 20);
    let mut parts = Vec::new();
    let mut each = |piece: Piece<'_>| {
        parts.push(match piece {
            Piece::Everyone(bytes) => Part::Everyone(bytes.to_vec()),
            Piece::Row { bytes, key } => match key {
                Field::Null => Part::Row(bytes.to_vec(), None),
                Field::Value(value) => Part::Row(bytes.to_vec(), Some(value.to_vec())),
                Field::Default => Part::Default(bytes.to_vec()),
            },
        });
        Ok::<(), Fault>(())
    };
    for piece in pieces {
        splitter.feed(piece, &mut each)?;
    }
    splitter.end(&mut each)?;
    Ok(parts)
}

fn row(bytes: &[u8], key: &[u8]) -> Part {
    Part::Row(bytes.to_vec(), Some(key.to_vec()))
}

/// Whole, and byte by byte.
fn check(options: &Options, column: usize, data: &[u8], expected: &[Part]) {
    assert_eq!(cut(options, column, &[data]).as_deref(), Ok(expected));
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(cut(options, column, &bytes).as_deref(), Ok(expected));
}

fn fails(options: &Options, column: usize, data: &[u8], fault: Fault) {
    assert_eq!(cut(options, column, &[data]), Err(fault));
    let bytes: Vec<&[u8]> = data.chunks(1).collect();
    assert_eq!(cut(options, column, &bytes), Err(fault));
}

#[test]
fn text_rows_end_where_postgresql_ends_them() {
    let text = Options::of(Format::Text);
    check(
        &text,
        1,
        b"a\t1\nb\\\n\\\tb\t2\nc\t\\N\n\t\\x41\\101\\n\\q",
        &[
            row(b"a\t1\n", b"1"),
            row(b"b\\\n\\\tb\t2\n", b"2"),
            Part::Row(b"c\t\\N\n".to_vec(), None),
            row(b"\t\\x41\\101\\n\\q", b"AA\nq"),
        ],
    );
    check(
        &text,
        0,
        b"1\r\n2\r\n",
        &[row(b"1\r\n", b"1"), row(b"2\r\n", b"2")],
    );
    check(&text, 0, b"1\r2\r", &[row(b"1\r", b"1"), row(b"2\r", b"2")]);
    check(&text, 0, b"1\n\\.\n2\tx\r\n", &[row(b"1\n", b"1")]);
    check(&text, 0, b"1\n\\.", &[row(b"1\n", b"1")]);
}

#[test]
fn text_that_shards_would_read_differently_is_a_fault() {
    let text = Options::of(Format::Text);
    fails(&text, 0, b"1\n2\r3\n", Fault::LineEnds);
    fails(&text, 0, b"1\r\n2\n", Fault::LineEnds);
    fails(&text, 0, b"1\r2\n", Fault::LineEnds);
    fails(&text, 0, b"1\n2\\.\n", Fault::EndMarker);
    fails(&text, 0, b"\\.x\n", Fault::EndMarker);
    fails(&text, 1, b"1\n", Fault::Short);
}

#[test]
fn csv_rows_hold_line_ends_in_quotes() {
    let csv = Options::of(Format::Csv);
    check(
        &csv,
        1,
        b"\"a\n,\"\"b\",1\n,\"2\"\nx,\nx,\"\"\n\"y\"\"\",3",
        &[
            row(b"\"a\n,\"\"b\",1\n", b"1"),
            row(b",\"2\"\n", b"2"),
            Part::Row(b"x,\n".to_vec(), None),
            row(b"x,\"\"\n", b""),
            row(b"\"y\"\"\",3", b"3"),
        ],
    );
    let own = Options {
        delimiter: b';',
        quote: b'\'',
        escape: b'\\',
        null: b"nil".to_vec(),
        header: Header::Line,
        force_null: Forced::Yes,
        ..csv.clone()
    };
    check(
        &own,
        1,
        b"a;b\n'x\\'\n;';1\nnil;'ni\\l'\n;nil\n",
        &[
            Part::Everyone(b"a;b\n".to_vec()),
            row(b"'x\\'\n;';1\n", b"1"),
            row(b"nil;'ni\\l'\n", b"ni\\l"),
            Part::Row(b";nil\n".to_vec(), None),
        ],
    );
    fails(&csv, 0, b"\"1\n", Fault::OpenQuote);
    fails(&csv, 0, b"1\n\\.\n", Fault::EndMarker);
    fails(&csv, 0, b"1\r\n\"2\n\"\n", Fault::LineEnds);
    fails(&csv, 1, b"1\n", Fault::Short);
}

#[test]
fn markers_of_null_and_default_are_compared_as_they_stand() {
    let text = Options {
        null: b"".to_vec(),
        default: Some(b"\\D".to_vec()),
        ..Options::of(Format::Text)
    };
    check(
        &text,
        0,
        b"\n\\D\nD\n",
        &[
            Part::Row(b"\n".to_vec(), None),
            Part::Default(b"\\D\n".to_vec()),
            row(b"D\n", b"D"),
        ],
    );
    let kept = Options {
        force_not_null: Forced::Yes,
        ..Options::of(Format::Csv)
    };
    check(&kept, 0, b",1\n", &[row(b",1\n", b"")]);
}

fn tuple(values: &[Option<&[u8]>]) -> Vec<u8> {
    let mut out = i16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
    for value in values {
        match value {
            None => out.extend((-1_i32).to_be_bytes()),
            Some(value) => {
                out.extend(i32::try_from(value.len()).unwrap().to_be_bytes());
                out.extend_from_slice(value);
            }
        }
    }
    out
}

#[test]
fn binary_tuples_are_found_by_their_lengths() {
    let binary = Options::of(Format::Binary);
    let header = [BINARY_SIGNATURE, &[0, 0, 0, 0, 0, 0, 0, 3, 7, 7, 7]].concat();
    let rows = [
        tuple(&[Some(b"x"), Some(b"\0\0\0\x01")]),
        tuple(&[None, None]),
    ];
    let end = vec![255, 255];
    let data = [&header[..], &rows[0], &rows[1], &end].concat();
    let expected = [
        Part::Everyone(header.clone()),
        row(&rows[0], b"\0\0\0\x01"),
        Part::Row(rows[1].clone(), None),
        Part::Everyone(end),
    ];
    check(&binary, 1, &data, &expected);
    fails(&binary, 0, &[&data[..], &[0]].concat(), Fault::AfterEnd);
    fails(&binary, 2, &data, Fault::Short);
    fails(&binary, 0, &data[..data.len() - 5], Fault::Binary);
    fails(&binary, 0, b"PGCOPX", Fault::Binary);
    fails(
        &binary,
        0,
        &[&header[..], &[0, 1, 255, 255, 255, 254]].concat(),
        Fault::Binary,
    );
}

#[test]
fn a_row_without_end_is_not_held_for_ever() {
    let mut splitter = Splitter::new(Options::of(Format::Text), 0, 10);
    let mut each = |_: Piece<'_>| Ok::<(), Fault>(());
    assert_eq!(splitter.feed(b"0123456789", &mut each), Ok(()));
    assert_eq!(splitter.feed(b"0", &mut each), Err(Fault::TooLong));
}

proptest! {
    /// However the stream is cut into messages, the same rows come of it, and all of its bytes.
    #[test]
    fn messages_do_not_matter(
        data in proptest::collection::vec(
            proptest::sample::select(b"a1\t,\"'\\\n\nN.x;".to_vec()), 0..80),
        sizes in proptest::collection::vec(1_usize..9, 1..20),
        csv in any::<bool>(),
        escape in proptest::sample::select(b"\"\\".to_vec()),
        column in 0_usize..3,
    ) {
        let format = if csv { Format::Csv } else { Format::Text };
        let options = Options { escape, ..Options::of(format) };
        let whole = cut(&options, column, &[&data]);
        let mut pieces: Vec<&[u8]> = Vec::new();
        let (mut rest, mut turn) = (&data[..], sizes.iter().cycle());
        while !rest.is_empty() {
            let size = (*turn.next().unwrap()).min(rest.len());
            pieces.push(&rest[..size]);
            rest = &rest[size..];
        }
        prop_assert_eq!(&cut(&options, column, &pieces), &whole);
        if let Ok(parts) = whole {
            let all: Vec<u8> = parts.into_iter().flat_map(|part| match part {
                Part::Everyone(bytes) | Part::Row(bytes, _) | Part::Default(bytes) => bytes,
            }).collect();
            prop_assert!(data.starts_with(&all));
            prop_assert!(all.len() == data.len() || data[all.len()..].starts_with(b"\\."));
        }
    }
}
