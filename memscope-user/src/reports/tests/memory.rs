//! Live blocks beside what the kernel counts.

use super::{Detail, check, check_text};
use crate::reports::{
    View,
    testing::{FAULTS, analysis},
};

const STARTED: &str = "
    +1990
    memory 1 anon 8192 file 4096
    1 malloc 100000 = 0x10 @a
    memory 1 anon 102400 file 4096 shmem 1024 pss 90000 swap 0 peak 111000 group 204800
    1 free 0x10
    1 malloc 5000 = 0x10 @a
    memory 1 anon 16384 file 4096 swap 8192 peak 111000 group 102400";

const ATTACHED: &str = "
    !late
    +1990
    memory 1 anon 67108864 file 1048576 brk 8192 mapped 134217728
    1 malloc 33554432 = 0x10 @a
    1 free 0x7000
    1 free 0x8000
    memory 1 anon 67108864 file 1048576";

#[test]
fn memory_over_time_with_what_live_blocks_explain() {
    let analysis = analysis(STARTED);
    check(&analysis).unwrap();
    check_text(
        &View::Memory.report(&analysis, "r", Some(10), Detail::Folded),
        "
        Memory of server (pid 1001), 3 readings
        cgroup /system.slice/server

            after       live      RSS     anon     file    shmem     swap      PSS   cgroup
          1.00 µs        0 B 12.0 KiB 8.00 KiB 4.00 KiB      0 B        –        –        –  first
          1.02 µs   97.7 KiB  105 KiB  100 KiB 4.00 KiB 1.00 KiB      0 B 87.9 KiB  200 KiB  peak
          1.05 µs   4.88 KiB 20.0 KiB 16.0 KiB 4.00 KiB      0 B 8.00 KiB 87.9 KiB  100 KiB  last

        At most 108 KiB were resident up to the last reading, at 1.05 µs, also between readings.
        At 1.05 µs, live blocks explain 4.88 KiB of 20.0 KiB RSS (24.4 %).

        Live blocks are what was asked for, RSS is pages that were touched. A block of which little was
        touched explains more than it takes, so there can be more than 100 %. What is left is code, stacks,
        free memory that the allocator keeps, its own, and what was mapped without it. PSS is read rarely:
        it is that of the last reading until then.

        Complete: all 3 events recorded, 0 lost; stacks: 100.0 % complete.",
    );
    let summary = View::Summary.report(&analysis, "r", None, Detail::Folded).text();
    // It is not of the end.
    let expected =
        "\n  memory     at 1.05 µs, live blocks explain 4.88 KiB of 20.0 KiB RSS (24.4 %)\n";
    assert!(summary.contains(expected), "{summary}");
}

#[test]
fn after_an_attach_older_blocks_are_told_apart() {
    let analysis = analysis(ATTACHED);
    check_text(
        &View::Memory.report(&analysis, "r", Some(10), Detail::Folded),
        "
        Memory of server (pid 1001), 2 readings

            after       live      RSS     anon     file    shmem     swap      PSS   cgroup
          1.00 µs        0 B 65.0 MiB 64.0 MiB 1.00 MiB      0 B        –        –        –  first, peak
          1.04 µs   32.0 MiB 65.0 MiB 64.0 MiB 1.00 MiB      0 B        –        –        –  last

        Attached at 65.0 MiB RSS; at 1.04 µs, blocks seen since explain
        32.0 MiB of 65.0 MiB RSS (49.2 %).
        At the attach [heap] had 8.00 KiB mapped, 4.00 KiB resident; other private anonymous
        mappings (arenas, large blocks, stacks of threads, its own) 128 MiB mapped, 64.0 MiB resident.
        Older blocks are in no number; 2 frees were of blocks not seen to begin.

        Live blocks are what was asked for, RSS is pages that were touched. A block of which little was
        touched explains more than it takes, so there can be more than 100 %. What is left is code, stacks,
        free memory that the allocator keeps, its own, and what was mapped without it. PSS is read rarely:
        it is that of the last reading until then.

        Complete: all 3 events recorded, 0 lost; 2 frees of blocks from before the trace; stacks: 100.0 % complete.",
    );
    let summary = View::Summary.report(&analysis, "r", None, Detail::Folded).text();
    let expected =
        "\n  memory     RSS was 65.0 MiB, 65.0 MiB at 1.04 µs; new blocks 32.0 MiB (49.2 %)\n";
    assert!(summary.contains(expected), "{summary}");
}

#[test]
fn with_page_faults_nothing_is_said_of_blocks() {
    let analysis = analysis(&format!("{FAULTS}\n{STARTED}"));
    let shown = View::Memory.report(&analysis, "r", Some(10), Detail::Folded).text();
    assert!(shown.contains("          – 12.0 KiB 8.00 KiB 4.00 KiB "), "{shown}");
    assert!(!shown.contains("ive blocks"), "{shown}");
    let json = View::Memory.report(&analysis, "r", Some(10), Detail::Folded);
    let json = serde_json::to_value(json).unwrap();
    assert_eq!(json["processes"][0]["points"][1]["live_bytes"], serde_json::Value::Null);
    assert_eq!(json["processes"][0]["explained"], serde_json::Value::Null);
}

#[test]
fn many_readings_are_shown_by_few_and_each_process_by_itself() {
    let mut text = String::from("!process 2 worker\n!exit 2 0\n");
    for number in 0..100 {
        let bytes = if number == 55 { 9 << 20 } else { (number + 1) << 10 };
        text.push_str(&format!(
            "1 malloc 10 = {:#x} @a\nmemory 1 anon {bytes}\n",
            16 * (number + 1)
        ));
        text.push_str(&format!("memory 2 anon {}\n", 99 << 20));
    }
    let analysis = analysis(&text);
    let shown = View::Memory.report(&analysis, "r", Some(5), Detail::Folded).text();
    let (first, second) = shown.split_once("Memory of worker (pid 1002), 100 readings").unwrap();
    assert!(first.starts_with("Memory of server (pid 1001), 100 readings\n"), "{shown}");
    assert!(first.contains("9.00 MiB") && first.contains("  peak\n"), "{first}");
    assert_eq!(
        first.lines().filter(|line| line.contains("KiB") && !line.contains("explain")).count(),
        5
    );
    assert!(shown.lines().all(|line| !line.ends_with(' ')), "{shown:?}");
    assert!(second.contains("  first, peak\n") && second.contains("  last\n"), "{second}");
    assert!(second.contains("live blocks explain 0 B of 99.0 MiB RSS (0.0 %)"), "{second}");
    let summary = View::Summary.report(&analysis, "r", None, Detail::Folded).text();
    assert!(
        summary.contains(
            "\n  pid 1001   at 1.99 µs, live blocks explain 1000 B of 100 KiB RSS (1.0 %)\n"
        ),
        "{summary}"
    );
}

#[test]
fn a_reading_at_the_end_needs_no_time() {
    let text = "+999990\nmemory 1 anon 8192\n1 malloc 4096 = 0x10 @a\nmemory 1 anon 8192";
    for (attached, expected) in [
        ("", "live blocks explain 4.00 KiB of 8.00 KiB RSS (50.0 %)"),
        ("!late\n", "RSS was 8.00 KiB, is 8.00 KiB; new blocks explain 4.00 KiB (50.0 %)"),
    ] {
        let analysis = analysis(&format!("{attached}{text}"));
        let summary = View::Summary.report(&analysis, "r", None, Detail::Folded).text();
        assert!(summary.contains(&format!("\n  memory     {expected}\n")), "{summary}");
    }
}
