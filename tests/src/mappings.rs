//! What `mappings.c` says it has mapped, beside what a recording says.

use serde_json::Value;

/// The numbers of a line, in order, by their names in the export.
const NUMBERS: [&str; 5] =
    ["mappings", "mapped_bytes", "live_bytes", "live_mappings", "failed_mappings"];

/// Compares each line `mapping <function> <kind> <by> <numbers>` with the sums of the exported call
/// chains of that kind that pass the function. Gives how many lines there were, and what differs.
#[must_use]
pub fn compare_mappings(said: &str, export: &Value) -> (usize, Vec<String>) {
    let mappings = &export["mappings"];
    let chains = mappings["chains"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (mut lines, mut problems) = (0, Vec::new());
    for line in said.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("mapping") => {
                lines += 1;
                let (function, kind, by) = (words.next(), words.next(), words.next());
                let expected: Vec<Option<u64>> = words.map(|word| word.parse().ok()).collect();
                let of_function = chains.iter().filter(|chain| {
                    let frames = chain["frames"].as_array().map(Vec::as_slice);
                    let passes = |frame: &Value| {
                        function.is_some() && frame["function"].as_str() == function
                    };
                    chain["kind"].as_str() == kind
                        && chain["by"].as_str() == by
                        && chain["stack"] == "complete"
                        && frames.unwrap_or_default().iter().any(passes)
                });
                let found: Vec<Option<u64>> = NUMBERS
                    .iter()
                    .map(|name| of_function.clone().map(|chain| chain[name].as_u64()).sum())
                    .collect();
                if found != expected {
                    problems.push(format!("{line}: recorded {found:?}"));
                }
            }
            Some(name @ "inherited_unmapped_bytes") => {
                lines += 1;
                let expected: Option<u64> = words.next().and_then(|word| word.parse().ok());
                if mappings[name].as_u64() != expected {
                    problems.push(format!("{line}: recorded {}", mappings[name]));
                }
            }
            _ => {}
        }
    }
    (lines, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_difference_is_told() {
        let chain = |function: &str, live_bytes: u64| {
            serde_json::json!({
                "frames": [{ "function": "mmap" }, { "function": function }],
                "kind": "anonymous", "by": "program", "stack": "complete", "mappings": 1,
                "mapped_bytes": 8192, "live_bytes": live_bytes, "live_mappings": 1,
                "failed_mappings": 0,
            })
        };
        let export = serde_json::json!({ "mappings": {
            "chains": [chain("f", 4096), chain("f", 8192), chain("g", 0)],
            "inherited_unmapped_bytes": 7,
        } });
        let right = "allocations 1\nmapping f anonymous program 2 16384 12288 2 0\n\
                     mapping g anonymous program 1 8192 0 1 0\ninherited_unmapped_bytes 7\n";
        assert_eq!(compare_mappings(right, &export), (3, Vec::new()));
        for (from, to) in [("12288", "12287"), ("program 1", "allocator 1"), ("s 7", "s 8")] {
            let (lines, problems) = compare_mappings(&right.replace(from, to), &export);
            assert_eq!((lines, problems.len()), (3, 1), "{problems:?}");
        }
    }
}
