//! Every target's seeds are played without a fuzzer: what was once found stays mended, and the targets keep compiling.

use shardway_fuzz::targets;
use std::{fs, path::Path};

const TARGETS: [(&str, fn(&[u8])); 8] = [
    ("backend", targets::backend::check),
    ("certificate", targets::certificate::check),
    ("changes", targets::changes::check),
    ("frames", targets::frames::check),
    ("lexer", targets::lexer::check),
    ("login", targets::login::check),
    ("replies", targets::replies::check),
    ("startup", targets::startup::check),
];

/// The names of a directory's files, without their extension.
fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(directory)
        .expect("a directory")
        .map(|entry| {
            let path = entry.expect("an entry").path();
            path.file_stem()
                .expect("a name")
                .to_string_lossy()
                .into_owned()
        })
        .collect();
    names.sort();
    names
}

#[test]
fn every_target_holds_for_its_seeds() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for (target, check) in TARGETS {
        let seeds = here.join("seeds").join(target);
        let entries = fs::read_dir(&seeds).expect("seeds");
        let mut played = 0;
        for entry in entries {
            let path = entry.expect("an entry").path();
            println!("{}", path.display());
            let bytes = fs::read(&path).expect("a seed");
            check(&bytes);
            // A part of a seed is what arrives when a connection breaks.
            (0..bytes.len().min(512)).for_each(|length| check(&bytes[..length]));
            played += 1;
        }
        assert!(played > 0, "{target} has no seeds");
    }
}

#[test]
fn no_target_is_forgotten() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let known = TARGETS.map(|(target, _)| target.to_owned());
    assert_eq!(names(&here.join("fuzz_targets")), known);
    assert_eq!(names(&here.join("seeds")), known);
}
