//! What a just-in-time compiler says of the code it generates: lines of address, size
//! and name. The format is the one that `perf` reads
//! (tools/perf/Documentation/jit-interface.txt in the Linux source).

use std::collections::BTreeMap;

/// Most bytes of a map that are looked at: the last ones, because what was written later
/// replaces what was written before.
pub const MAX_MAP_BYTES: u64 = 256 << 20;
/// Most lines that are looked at: the last ones.
pub const MAX_ENTRIES: usize = 1 << 21;

/// Names of generated code, by address.
///
/// Compilers use memory again, so where lines overlap the later one counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PerfMap {
    /// In the order of addresses, without overlaps.
    ranges: Vec<NamedRange>,
    /// All names, one after the other.
    names: String,
    ignored_lines: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct NamedRange {
    start_avma: u64,
    end_avma: u64,
    /// Position of the name in `names`.
    name: (usize, usize),
}

impl PerfMap {
    /// Reads a map. Lines that are none are left out, and so is a last one without its
    /// end: it is still being written.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let whole = text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let text = text.get(..whole).unwrap_or_default();
        let mut map = Self::default();
        let mut ranges = BTreeMap::new();
        let lines = text.split(|byte| *byte == b'\n');
        let skipped = lines.clone().count().saturating_sub(MAX_ENTRIES + 1);
        for line in lines.skip(skipped).filter(|line| !line.is_empty()) {
            let Some((start_avma, end_avma, name)) = entry(line) else {
                map.ignored_lines += 1;
                continue;
            };
            let begin = map.names.len();
            map.names.push_str(&name);
            cover(&mut ranges, start_avma, end_avma, (begin, map.names.len()));
        }
        map.ranges = ranges
            .into_iter()
            .map(|(start_avma, (end_avma, name))| NamedRange { start_avma, end_avma, name })
            .collect();
        map
    }

    /// The name of the code at an address.
    #[must_use]
    pub fn name_at(&self, address_avma: u64) -> Option<&str> {
        let after = self.ranges.partition_point(|range| range.start_avma <= address_avma);
        let range = self.ranges.get(after.checked_sub(1)?)?;
        let (begin, end) = range.name;
        (address_avma < range.end_avma).then(|| self.names.get(begin..end)).flatten()
    }

    /// How many lines made no sense.
    #[must_use]
    pub fn ignored_lines(&self) -> usize {
        self.ignored_lines
    }
}

/// Address, first address after it, and name, of a line `START SIZE NAME`. Both numbers
/// are hexadecimal; the name may hold blanks.
fn entry(line: &[u8]) -> Option<(u64, u64, String)> {
    let line = String::from_utf8_lossy(line);
    let (start, rest) = line.split_once(' ')?;
    let (size, name) = rest.split_once(' ')?;
    let (start_avma, size_bytes) = (hexadecimal(start)?, hexadecimal(size)?);
    let name = name.trim();
    if size_bytes == 0 || name.is_empty() {
        return None;
    }
    let name = name.chars().take(super::MAX_NAME_CHARS).collect();
    Some((start_avma, start_avma.checked_add(size_bytes)?, name))
}

fn hexadecimal(digits: &str) -> Option<u64> {
    let digits = digits.strip_prefix("0x").unwrap_or(digits);
    // `from_str_radix` allows a sign.
    let all = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    all.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

/// Ranges by their start: end, and position of the name.
type Ranges = BTreeMap<u64, (u64, (usize, usize))>;

/// Puts a range over what is there: what it covers is gone, and what it covers in part is
/// cut. Each range removed was put there once, so all lines together take n log n.
fn cover(ranges: &mut Ranges, start_avma: u64, end_avma: u64, name: (usize, usize)) {
    if let Some((_, before)) = ranges.range_mut(..start_avma).next_back()
        && before.0 > start_avma
    {
        let (before_end, before_name) = *before;
        before.0 = start_avma;
        if before_end > end_avma {
            ranges.insert(end_avma, (before_end, before_name));
        }
    }
    while let Some((&covered, &(covered_end, covered_name))) =
        ranges.range(start_avma..end_avma).next()
    {
        ranges.remove(&covered);
        if covered_end > end_avma {
            ranges.insert(end_avma, (covered_end, covered_name));
        }
    }
    ranges.insert(start_avma, (end_avma, name));
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn code_has_the_name_of_its_line() {
        let map = PerfMap::parse(
            b"3ef414c0 398 RegExp:[{(]\n0x3ef418a0 0x20 LazyCompile:~a /srv/a b.js:1:2\n",
        );
        assert_eq!(map.name_at(0x3ef4_14bf), None);
        assert_eq!(map.name_at(0x3ef4_14c0), Some("RegExp:[{(]"));
        assert_eq!(map.name_at(0x3ef4_1857), Some("RegExp:[{(]"));
        assert_eq!(map.name_at(0x3ef4_1858), None);
        assert_eq!(map.name_at(0x3ef4_18bf), Some("LazyCompile:~a /srv/a b.js:1:2"));
        assert_eq!(map.name_at(0x3ef4_18c0), None);
        assert_eq!(map.ignored_lines(), 0);
    }

    #[test]
    fn the_later_line_counts() {
        let map = PerfMap::parse(b"100 100 old\n140 20 inner\n1f0 20 over\n180 8 again\n");
        let names = [0x100, 0x140, 0x15f, 0x160, 0x180, 0x188, 0x1ef, 0x1f0, 0x20f, 0x210];
        let found: Vec<_> = names.iter().map(|address| map.name_at(*address)).collect();
        let (old, over) = (Some("old"), Some("over"));
        let inner = Some("inner");
        assert_eq!(found, [old, inner, inner, old, Some("again"), old, old, over, over, None]);
        let replaced = PerfMap::parse(b"100 10 a\n110 10 b\n100 20 new\n");
        assert_eq!(replaced.name_at(0x110), Some("new"));
        assert_eq!(replaced.ranges.len(), 1);
    }

    #[test]
    fn lines_that_are_none_are_left_out() {
        let map = PerfMap::parse(
            b"\n100\n100 10\n100 10 \n-1 10 sign\n+1 10 sign\ng 1 x\n100 0 empty\n\
              ffffffffffffffff 10 beyond\n11111111111111111 1 long\n200 10 good\xff\n300 10 torn",
        );
        assert_eq!(map.ignored_lines(), 9);
        assert_eq!(map.name_at(0x200), Some("good\u{fffd}"));
        assert_eq!(map.name_at(0x300), None, "a line is whole when its end is written");
        assert_eq!(PerfMap::parse(b""), PerfMap::default());
    }

    #[test]
    fn names_are_cut() {
        let line = format!("100 10 {}\n", "n".repeat(crate::symbols::MAX_NAME_CHARS + 1));
        let map = PerfMap::parse(line.as_bytes());
        assert_eq!(map.name_at(0x100).unwrap().len(), crate::symbols::MAX_NAME_CHARS);
    }

    /// The rule itself, slowly: the last line that covers the address.
    fn slowly(lines: &[(u8, u8)], address_avma: u64) -> Option<String> {
        lines.iter().enumerate().rev().find_map(|(number, (start, size))| {
            let start = u64::from(*start);
            (start..start + u64::from(*size)).contains(&address_avma).then(|| number.to_string())
        })
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_map(text: Vec<u8>, address: u64) {
            let map = PerfMap::parse(&text);
            let disjoint = map.ranges.windows(2).all(|pair| pair[0].end_avma <= pair[1].start_avma);
            prop_assert!(disjoint);
            prop_assert!(map.name_at(address).is_none_or(|name| !name.is_empty()));
        }

        #[test]
        fn overlaps_are_resolved_as_the_rule_says(lines: Vec<(u8, u8)>) {
            let text: String = lines
                .iter()
                .enumerate()
                .map(|(number, (start, size))| format!("{start:x} {size:x} {number}\n"))
                .collect();
            let map = PerfMap::parse(text.as_bytes());
            for address in 0..520 {
                let expected = slowly(&lines, address);
                prop_assert_eq!(map.name_at(address), expected.as_deref());
            }
        }
    }
}
