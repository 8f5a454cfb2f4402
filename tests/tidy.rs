//! The architecture's rules as a test: layers, purity, who may do what, file headers, and that the documents name only
//! what exists. Text only, in well under a second; what it cannot see (macros, re-exports) it does not claim.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// Layers, lowest first: a module names modules of lower layers only.
const LAYERS: &[&[&str]] = &[
    &["clock", "entropy", "failpoint", "wire", "sql"],
    &["auth", "catalog"],
    &["metrics", "protocol", "merge", "split", "config"],
    &["net", "gate", "plan"],
    &["pool", "journal", "replication", "inspect"],
    &["registry"],
    &["txn", "reshard"],
    &["admin"],
    &["proxy"],
    &["server", "sandbox"],
    &["cli"],
];
/// Modules that decide and do nothing; every `state.rs` too.
const PURE: &[&str] = &[
    "wire", "sql", "catalog", "auth", "protocol", "plan", "merge", "split",
];
const IMPURE: &[&str] = &[
    "tokio::",
    "std::net",
    "std::fs",
    "std::env",
    "Instant::now",
    "SystemTime::now",
    "getrandom",
    "clock::Clock",
];

/// What makes a static mutable.
const MUTABLE: &[&str] = &["mut ", "Mutex", "RwLock", "Cell", "Atomic", "Once"];

/// What only some may name, and who: path prefixes under `src/`.
const ONLY: &[(&str, &[&str], &str)] = &[
    (
        "pg_raw_parse",
        &["sql/parse"],
        "one file knows the parser crate",
    ),
    ("indicatif", &["cli/reshard/bars.rs"], "one file draws bars"),
    (
        "Instant::now",
        &["clock.rs", "sandbox/"],
        "time is handed down; sandbox waits for servers it started",
    ),
    (
        "SystemTime::now",
        &["clock.rs", "sandbox/"],
        "time is handed down",
    ),
    ("getrandom::", &["entropy.rs"], "one source of randomness"),
    (
        "env::var",
        &["config/", "cli/", "sandbox/", "failpoint.rs"],
        "settings come from the file; sandbox finds server binaries; tests arm points, which no release has",
    ),
    (
        "fs::",
        &["config/", "cli/", "sandbox/", "net/listen.rs"],
        "only configuration is read; a listener looks at and removes its own socket file; sandbox owns its directories",
    ),
    (
        "Notice {",
        &[
            "proxy/reply",
            "wire/notice.rs",
            "protocol/client_startup.rs",
        ],
        "one place words errors for clients; a login is refused where there is no session to reply to",
    ),
    (
        ".spawn(",
        &[
            "server",
            "pool/",
            "sandbox/",
            "inspect/",
            "cli/",
            "reshard/dump.rs",
            "reshard/steps/catch_up.rs",
            "replication/stream.rs",
            "replication/streaming.rs",
        ],
        "server counts tasks; a follower's tasks, and the thread that reads its stream, end with it; pools connect on a runtime handle so that a client that leaves ends no connect; \
         inspect drives its control connection; sandbox, cli and a reshard's pg_dump start processes",
    ),
    (
        "tokio::spawn",
        &["server", "sandbox/", "inspect/", "cli/"],
        "server counts tasks",
    ),
];

/// A file under `src/`, without what follows its tests.
struct Source {
    /// Relative to `src/`.
    name: String,
    module: String,
    code: String,
}

#[test]
fn modules_name_lower_layers_only() {
    let rank: BTreeMap<&str, usize> = LAYERS
        .iter()
        .enumerate()
        .flat_map(|(at, layer)| layer.iter().map(move |module| (*module, at)))
        .collect();
    let mut faults = Vec::new();
    for source in sources() {
        let Some(&here) = rank.get(source.module.as_str()) else {
            if !matches!(source.module.as_str(), "lib" | "main") {
                faults.push(format!(
                    "{}: module {} has no layer",
                    source.name, source.module
                ));
            }
            continue;
        };
        for used in named_modules(&source.code) {
            let Some(&there) = rank.get(used.as_str()) else {
                continue;
            };
            if used != source.module && there >= here {
                faults.push(format!(
                    "{}: {} names {used}, which is no lower layer",
                    source.name, source.module
                ));
            }
        }
    }
    none(&faults);
}

#[test]
fn modules_that_decide_do_nothing() {
    let pure = |source: &Source| {
        PURE.contains(&source.module.as_str()) || source.name.ends_with("/state.rs")
    };
    let mut faults = Vec::new();
    for source in sources().iter().filter(|source| pure(source)) {
        for (number, line) in lines(&source.code) {
            for name in IMPURE.iter().filter(|name| line.contains(**name)) {
                faults.push(format!(
                    "src/{}:{number}: {name} in a pure module",
                    source.name
                ));
            }
        }
    }
    none(&faults);
}

#[test]
fn nothing_is_global() {
    let mut faults = Vec::new();
    for source in sources() {
        for (number, line) in lines(&source.code) {
            let bare = line
                .trim_start()
                .trim_start_matches("pub ")
                .trim_start_matches("pub(crate) ")
                .trim_start_matches("pub(super) ");
            // What is computed once from the source itself and never changes is a constant.
            let constant =
                bare.contains(": LazyLock<") && !MUTABLE.iter().any(|cell| bare.contains(cell));
            if (bare.starts_with("static ") && !constant) || bare.starts_with("thread_local!") {
                faults.push(format!("src/{}:{number}: {}", source.name, line.trim()));
            }
        }
    }
    none(&faults);
}

#[test]
fn only_those_who_may_name_it_do() {
    let mut faults = Vec::new();
    for source in sources() {
        for (name, who, reason) in ONLY {
            if who.iter().any(|prefix| source.name.starts_with(prefix)) {
                continue;
            }
            for (number, line) in lines(&source.code).filter(|(_, line)| line.contains(name)) {
                faults.push(format!(
                    "src/{}:{number}: {} ({reason})",
                    source.name,
                    line.trim()
                ));
            }
        }
    }
    none(&faults);
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut faults = Vec::new();
    for root in ["src", "tests", "benches"] {
        for file in files(&root_dir().join(root), "rs") {
            let text = read(&file);
            let header = text.trim_start().lines().next().unwrap_or_default();
            if !header.starts_with("//! ") || header.len() < 12 {
                faults.push(format!("{}: opens with {header:?}", file.display()));
            }
        }
    }
    none(&faults);
}

#[test]
fn documents_name_what_exists() {
    let code: String = sources()
        .into_iter()
        .map(|source| read(&root_dir().join("src").join(source.name)))
        .collect();
    let mut faults = Vec::new();
    for file in documents() {
        let text = read(&file);
        for word in
            text.split(|c: char| !(c.is_alphanumeric() || matches!(c, '/' | '.' | '_' | '-')))
        {
            let word = word.trim_end_matches('.');
            let is_path = ["src/", "tests/", "docs/", "benches/", "config/"]
                .iter()
                .any(|root| word.starts_with(root));
            if is_path && word.contains('.') && !root_dir().join(word).exists() {
                faults.push(format!("{}: {word} does not exist", file.display()));
            }
            if codes(word).contains(&word) && !code.contains(word) {
                faults.push(format!(
                    "{}: nothing in src answers with {word}",
                    file.display()
                ));
            }
        }
    }
    none(&faults);
}

/// The page is made from the table of codes, so a code that is not on it is not in the table either.
#[test]
fn every_code_that_clients_see_is_in_the_table() {
    let page = read(&root_dir().join("docs/errors.md"));
    let mut faults = Vec::new();
    for source in sources() {
        for code in codes(&source.code) {
            if !page.contains(&format!("\n## {code} ")) {
                faults.push(format!("src/{}: {code}", source.name));
            }
        }
    }
    none(&faults);
}

#[test]
fn metrics_that_documents_and_alerts_name_exist() {
    let known = ["exposition.rs", "exposition/reshards.rs"]
        .map(|file| read(&root_dir().join("src/metrics").join(file)))
        .concat();
    let mut faults = Vec::new();
    let mut named = documents();
    named.extend(files(&root_dir().join("config"), "yml"));
    for file in named {
        for word in read(&file).split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
            if word.starts_with("shardway_") && !known.contains(&format!("\"{word}\"")) {
                faults.push(format!("{}: {word}", file.display()));
            }
        }
    }
    none(&faults);
}

/// `SW` and three digits, wherever they stand.
fn codes(text: &str) -> Vec<&str> {
    text.match_indices("SW")
        .filter_map(|(at, _)| text.get(at..at + 5))
        .filter(|code| code[2..].bytes().all(|byte| byte.is_ascii_digit()))
        .collect()
}

#[test]
fn example_configurations_load() {
    for file in files(&root_dir().join("config"), "toml") {
        if let Err(errors) = shardway::config::load::load(&file) {
            panic!("{}", errors.render());
        }
    }
}

#[test]
fn commands_in_the_documents_exist() {
    let help = std::process::Command::new(env!("CARGO_BIN_EXE_shardway"))
        .arg("--help")
        .output()
        .expect("it runs");
    let help = String::from_utf8_lossy(&help.stdout).into_owned();
    let is_command = |word: &str| {
        help.lines()
            .any(|line| line.split_whitespace().next() == Some(word))
    };
    let mut faults = Vec::new();
    for file in documents() {
        for line in read(&file).lines() {
            let quoted = line.split('`').skip(1).step_by(2);
            for part in quoted.chain(line.strip_prefix("$ ")) {
                let Some(arguments) = part.strip_prefix("shardway ") else {
                    continue;
                };
                let word = arguments.split_whitespace().next().unwrap_or_default();
                let names_one =
                    !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
                if names_one && !is_command(word) {
                    faults.push(format!("{}: shardway {word}", file.display()));
                }
            }
        }
    }
    none(&faults);
}

fn none(faults: &[String]) {
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
}

fn sources() -> Vec<Source> {
    let src = root_dir().join("src");
    let source = |file: PathBuf| {
        let name = file
            .strip_prefix(&src)
            .expect("under src")
            .display()
            .to_string();
        let module = name
            .split('/')
            .next()
            .unwrap_or_default()
            .trim_end_matches(".rs")
            .to_owned();
        let text = read(&file);
        // Tests stand last: what they name is theirs.
        let code = text
            .split("#[cfg(test)]")
            .next()
            .unwrap_or_default()
            .to_owned();
        Source { name, module, code }
    };
    let is_test = |file: &PathBuf| {
        let named = |part: &str| part == "tests" || part == "testing";
        let below = file.strip_prefix(&src).unwrap_or(file);
        below
            .with_extension("")
            .components()
            .any(|part| part.as_os_str().to_str().is_some_and(named))
    };
    files(&src, "rs")
        .into_iter()
        .filter(|file| !is_test(file))
        .map(source)
        .collect()
}

/// The modules that a file names by `crate::x` or in `use crate::{x, y}`.
fn named_modules(code: &str) -> Vec<String> {
    let mut named = Vec::new();
    let code: String = lines(code).map(|(_, line)| format!("{line}\n")).collect();
    for (at, _) in code.match_indices("crate::") {
        let rest = &code[at + 7..];
        match rest.strip_prefix('{') {
            None => named.push(ident(rest)),
            Some(list) => named.extend(top_level_names(list)),
        }
    }
    named
}

/// The first name of each item of a `use` list, up to its closing brace.
fn top_level_names(list: &str) -> Vec<String> {
    let (mut depth, mut names, mut fresh) = (0_usize, Vec::new(), true);
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 0 => break,
            b'}' => depth -= 1,
            b',' if depth == 0 => fresh = true,
            _ if fresh && depth == 0 && byte.is_ascii_lowercase() => {
                names.push(ident(&list[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names
}

fn ident(text: &str) -> String {
    text.chars()
        .take_while(|c| c.is_alphanumeric() || *c == '_')
        .collect()
}

/// Lines of code with their numbers; comments left out.
fn lines(code: &str) -> impl Iterator<Item = (usize, &str)> {
    code.lines()
        .enumerate()
        .map(|(at, line)| (at + 1, line))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn documents() -> Vec<PathBuf> {
    let mut documents = files(&root_dir().join("docs"), "md");
    documents.extend(
        [
            root_dir().join("README.md"),
            root_dir().join("CHANGELOG.md"),
        ]
        .into_iter()
        .filter(|file| file.exists()),
    );
    documents
}

fn root_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

/// Files below a directory with an extension, in order; none when there is no such directory.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir()
            && !matches!(
                path.file_name().and_then(|name| name.to_str()),
                Some("target" | "node_modules")
            )
        {
            found.extend(files(&path, extension));
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
    found.sort();
    found
}
