//! Text for people: units, and text from outside made harmless.

use std::fmt::Write as _;

/// Longest piece of foreign text shown; demangled C++ names can have megabytes.
const MAX_SHOWN_CHARS: usize = 500;

/// Names, paths and comms come from the target and may hold anything. Control
/// characters (which a terminal would obey), and those that reorder text, are shown
/// as escapes; what is too long is cut.
#[must_use]
pub fn harmless(foreign: &str) -> String {
    let mut shown = String::with_capacity(foreign.len().min(MAX_SHOWN_CHARS));
    for (position, character) in foreign.chars().enumerate() {
        if position == MAX_SHOWN_CHARS {
            shown.push('…');
            break;
        }
        if character.is_control() || reorders(character) {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Directional formatting characters and the line separators (Unicode UAX #9, #14).
fn reorders(character: char) -> bool {
    matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}' | '\u{feff}')
}

/// From the smallest, each 1024 of the one before.
const BYTE_UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

/// Bytes with a binary unit and three figures: `1.50 MiB`.
#[must_use]
pub fn bytes(value: u64) -> String {
    let unit = byte_unit(value);
    format!("{} {}", in_unit(value, unit), BYTE_UNITS.get(unit).unwrap_or(&"EiB"))
}

/// Bytes, and two numbers next to them in the same unit without its name.
#[must_use]
pub fn bytes_between(value: u64, low: u64, high: u64) -> (String, String, String) {
    let unit = byte_unit(value);
    (bytes(value), in_unit(low, unit), in_unit(high, unit))
}

fn byte_unit(value: u64) -> usize {
    if value < 1024 {
        return 0;
    }
    let mut scaled = value as f64 / 1024.0;
    let mut unit = 1;
    while scaled >= 999.5 && unit + 1 < BYTE_UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    unit
}

fn in_unit(value: u64, unit: usize) -> String {
    match unit {
        0 => value.to_string(),
        _ => three_figures(value as f64 / 1024.0_f64.powi(unit as i32)),
    }
}

/// A duration with a unit and three figures: `2.35 ms`.
#[must_use]
pub fn duration_ns(value: u64) -> String {
    let seconds = value as f64 / 1e9;
    match value {
        0..1_000 => format!("{value} ns"),
        1_000..1_000_000 => format!("{} µs", three_figures(value as f64 / 1e3)),
        1_000_000..1_000_000_000 => format!("{} ms", three_figures(value as f64 / 1e6)),
        _ if seconds < 120.0 => format!("{} s", three_figures(seconds)),
        _ if seconds < 7200.0 => format!("{} min", three_figures(seconds / 60.0)),
        _ => format!("{} h", three_figures(seconds / 3600.0)),
    }
}

fn three_figures(value: f64) -> String {
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}")
}

/// A count with its thousands set apart: `1,234,567`.
#[must_use]
pub fn count(value: u64) -> String {
    let digits = value.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// `part` of `whole` in percent: `12.3 %`; a dash where there is no whole.
///
/// Only nothing is `0.0 %` and only all is `100.0 %`: next to them there is a second
/// decimal, and `99.99 %` and `<0.01 %` are the last.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "–".to_owned();
    }
    let of_ten_thousand = u128::from(part) * 10_000 / u128::from(whole);
    match of_ten_thousand {
        0 if part > 0 => "<0.01 %".to_owned(),
        // One more than needed, because the other arm may round a little up or down.
        1..6 | 9_994..10_000 => {
            format!("{}.{:02} %", of_ten_thousand / 100, of_ten_thousand % 100)
        }
        _ => format!("{:.1} %", part as f64 * 100.0 / whole as f64),
    }
}

/// Lower-case hexadecimal, two digits a byte.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        // Writing to a String cannot fail.
        write!(hex, "{byte:02x}").ok();
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes_do_not_reach_the_terminal() {
        assert_eq!(harmless("a\x1b[31mb\r\n"), "a\\u{1b}[31mb\\u{d}\\u{a}");
        assert_eq!(harmless("\u{202e}evil"), "\\u{202e}evil");
        assert_eq!(harmless("naïve::<T>()"), "naïve::<T>()");
        assert_eq!(harmless(&"x".repeat(501)).chars().count(), 501);
    }

    #[test]
    fn only_all_is_a_hundred_percent_and_only_nothing_none() {
        let cases = [
            (0, 7, "0.0 %"),
            (7, 7, "100.0 %"),
            (u64::MAX, u64::MAX, "100.0 %"),
            (u64::MAX - 1, u64::MAX, "99.99 %"),
            (1, u64::MAX, "<0.01 %"),
            (99_970, 100_000, "99.97 %"),
            (99_949, 100_000, "99.94 %"),
            (99_939, 100_000, "99.9 %"),
            (30, 100_000, "0.03 %"),
            (59, 100_000, "0.05 %"),
            (60, 100_000, "0.1 %"),
            (8, 7, "114.3 %"),
        ];
        for (part, whole, expected) in cases {
            assert_eq!(percent(part, whole), expected, "{part} of {whole}");
        }
    }

    #[test]
    fn units_carry_three_figures() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.00 KiB"),
            (1536, "1.50 KiB"),
            (1 << 20, "1.00 MiB"),
            (1023 << 10, "1.00 MiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (value, expected) in cases {
            assert_eq!(bytes(value), expected);
        }
        let between = bytes_between(1 << 30, 900 << 20, 1200 << 20);
        assert_eq!((&*between.0, &*between.1, &*between.2), ("1.00 GiB", "0.88", "1.17"));
        assert_eq!(bytes_between(1000, 0, 2000).2, "2000");
        assert_eq!(duration_ns(999), "999 ns");
        assert_eq!(duration_ns(2_345_678), "2.35 ms");
        assert_eq!(duration_ns(90_000_000_000), "90.0 s");
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(percent(1, 8), "12.5 %");
        assert_eq!(percent(1, 0), "–");
        assert_eq!(hex(&[0, 0xab]), "00ab");
    }
}
