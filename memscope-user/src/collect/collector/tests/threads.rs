//! Threads that end, and what they are called.

use memscope_common::{
    control::COMM_BYTES,
    record::{KIND_THREAD_EXIT, ThreadExit},
};

use super::*;
use crate::model::ThreadName;

fn thread_exit(thread: u32, name: &[u8], time_ns: u64) -> Record {
    let mut comm = [0; COMM_BYTES];
    comm[..name.len()].copy_from_slice(name);
    let header = header(KIND_THREAD_EXIT, 0, time_ns);
    Record::ThreadExit(ThreadExit { header, thread, padding: 0, comm })
}

#[test]
fn threads_that_are_not_called_as_their_process_are_named() {
    let mut bench = Bench::new(vec![range(0x10_0000, Some(1))]);
    let exit = |thread, time_ns| {
        let (process, thread) = (ProcessId(0), ThreadId(thread));
        Item::Event(Event::ThreadExit { process, thread, time_ns })
    };
    let named = |thread, name: &str| {
        let (process, thread) = (ProcessId(0), ThreadId(thread));
        Item::ThreadName(ThreadName { process, thread, name: name.to_owned() })
    };
    let first = bench.take(&thread_exit(42, b"first", 10));
    assert_eq!(first.last(), Some(&exit(42, 10)));
    assert!(!first.iter().any(|item| matches!(item, Item::ThreadName(_))), "{first:?}");
    assert_eq!(
        bench.take(&thread_exit(7, b"wor\xffker", 20)),
        [named(7, "wor\u{fffd}ker"), exit(7, 20)]
    );
    assert_eq!(bench.take(&thread_exit(8, b"", 30)), [exit(8, 30)]);
    let mut items = Vec::new();
    let names = vec![(9, "last".to_owned()), (10, "first".to_owned())];
    bench.collector.thread_names(TARGET, names.clone(), |item| items.push(item));
    bench.collector.thread_names(TARGET + 1, names, |item| items.push(item));
    assert_eq!(items, [named(9, "last")]);
}
