//! PostgreSQL's regression statements as the parser crate ships them, and texts made from them by small changes.

use std::{fs, path::PathBuf, process::Command};

/// The pieces of every `.sql` file: runs of lines up to one that ends with a semicolon, and each line by itself.
/// Some end inside a string or a function's body, which is as good a text for a lexer as any.
pub fn pieces() -> Vec<String> {
    let mut pieces = Vec::new();
    for file in files(source()) {
        let text = String::from_utf8_lossy(&fs::read(file).unwrap()).into_owned();
        let mut piece = String::new();
        for line in text.replace('\0', "").lines() {
            piece.push_str(line);
            piece.push('\n');
            if line.trim_end().ends_with(';') {
                pieces.push(std::mem::take(&mut piece));
            }
            pieces.push(line.to_owned());
        }
        pieces.push(piece);
    }
    pieces.sort();
    pieces.dedup();
    pieces
}

/// Where cargo keeps the sources of shardway's parser crate.
fn source() -> PathBuf {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.toml");
    let output = Command::new(env!("CARGO"))
        .args([
            "metadata",
            "--format-version",
            "1",
            "--locked",
            "--manifest-path",
            manifest,
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let package = metadata["packages"]
        .as_array()
        .unwrap()
        .iter()
        .find(|package| package["name"] == "pg_raw_parse")
        .unwrap();
    PathBuf::from(package["manifest_path"].as_str().unwrap())
        .with_file_name("libpg_query")
        .join("test/sql")
}

fn files(directory: PathBuf) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(path));
        } else if path.extension().is_some_and(|extension| extension == "sql") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// A generator of changes that gives the same ones for the same seed.
pub struct Mutator(pub u64);

/// What is put into texts: the beginnings and ends of every kind of token.
const SNIPPETS: &[&str] = &[
    "'",
    "''",
    "\"",
    "\\",
    "\\'",
    "$",
    "$$",
    "$a$",
    "$1",
    "/*",
    "*/",
    "--",
    "-",
    "+",
    "*",
    "/",
    "\n",
    "\r",
    "\t",
    " ",
    "\x0b",
    "e'",
    "E'",
    "b'",
    "X'",
    "n'",
    "u&'",
    "U&\"",
    " uescape '!'",
    "UESCAPE",
    "0",
    "1",
    "9",
    "0x",
    "0b1",
    "0o7",
    "_",
    "1_0",
    ".",
    "..",
    "...",
    "1.",
    ".5",
    "e",
    "1e",
    "e+5",
    "1e5",
    "1e-",
    "2147483647",
    "2147483648",
    "9223372036854775807",
    "9223372036854775808",
    "0x7fffffff",
    "0xffffffffffffffff",
    "a",
    "é",
    "?",
    "=",
    "<>",
    "::",
    ":=",
    "=>",
    "~",
    "@",
    "(",
    "[",
    ",",
    ";",
    "'a'",
    " 'b'\n'c'",
    "'a' -- x\n 'b'",
    "/* x */",
    "/* shardway: key=1 */",
    "-- x\n",
    "\x01",
    "\x7f",
    "{",
    "$é$",
    "$1a",
    "a$1",
    "1$1",
];

impl Mutator {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }

    /// A text that differs from this one in one to four places.
    pub fn mutate(&mut self, text: &str) -> String {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len() + 1);
            let to = (at + self.below(4)).min(bytes.len());
            let snippet = SNIPPETS[self.below(SNIPPETS.len())].as_bytes();
            let replaced = if self.below(2) == 0 { at..at } else { at..to };
            bytes.splice(replaced, snippet.iter().copied());
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// A text of snippets only.
    pub fn invent(&mut self) -> String {
        (0..=self.below(12))
            .map(|_| SNIPPETS[self.below(SNIPPETS.len())])
            .collect()
    }
}
