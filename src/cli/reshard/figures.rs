//! Figures as people read them. Pure.

/// `1.2 MB`.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["kB", "MB", "GB", "TB"];
    const STEP: f64 = 1_000.0;
    if count < 1_000 {
        return format!("{count} B");
    }
    let mut value = count as f64 / STEP;
    let mut unit = 0;
    while value >= STEP && unit + 1 < UNITS.len() {
        value /= STEP;
        unit += 1;
    }
    let places = usize::from(value < 10.0);
    format!("{value:.places$} {}", UNITS.get(unit).unwrap_or(&""))
}

/// `2 m 03 s`.
pub(super) fn seconds(all: u64) -> String {
    let (hours, minutes, seconds) = (all / 3600, all / 60 % 60, all % 60);
    match (hours, minutes) {
        (0, 0) => format!("{seconds} s"),
        (0, _) => format!("{minutes} m {seconds:02} s"),
        _ => format!("{hours} h {minutes:02} m"),
    }
}

/// A value that is one word of a `key=value` line.
pub(super) fn word(value: &str) -> String {
    let parts = |it: char| it.is_whitespace() || it.is_control() || matches!(it, '"' | '=');
    if value.is_empty() || value.contains(parts) {
        format!("{value:?}")
    } else {
        value.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short() {
        let said: Vec<String> = [0, 999, 1_000, 12_345, 1_234_567, 5_000_000_000]
            .map(bytes)
            .into();
        assert_eq!(
            said,
            ["0 B", "999 B", "1.0 kB", "12 kB", "1.2 MB", "5.0 GB"]
        );
        assert_eq!([5, 65, 3700].map(seconds), ["5 s", "1 m 05 s", "1 h 01 m"]);
        assert_eq!([word("a"), word("a b"), word("")], ["a", "\"a b\"", "\"\""]);
    }

    #[test]
    fn a_word_neither_ends_a_line_nor_moves_a_cursor() {
        let said = ["a\tb", "a\rb", "\u{1b}[2J", "a\u{85}b"].map(word);
        assert_eq!(
            said,
            [r#""a\tb""#, r#""a\rb""#, r#""\u{1b}[2J""#, r#""a\u{85}b""#]
        );
    }
}
