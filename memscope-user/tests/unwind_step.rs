//! The steps of the eBPF side over tables, and the walk of copied stacks, on stacks of this
//! very process: against what the C runtime's own unwinder (`backtrace`, which C++ and
//! Rust unwind by) finds at the same moment, and against framehop.

#![expect(clippy::unwrap_used, reason = "this is a test")]

mod recorded;

use std::{
    collections::HashSet,
    ffi::{c_int, c_void},
    fmt::Write as _,
    hint::black_box,
    time::{Duration, Instant},
};

use memscope::model::StackOutcome;
use memscope_common::record::{
    OUTCOME_COMPLETE, OUTCOME_FRAME_POINTERS_ENDED, OUTCOME_STACK_UNREADABLE,
};

use recorded::{Code, Recording, record, signals};

/// All three walks of a stack in which all code has unwind information.
fn assert_same(code: &Code, recording: &Recording, what: &str) {
    let expected = recording.expected_frames();
    let (frames, outcome) = recording.walk_by_steps(code);
    assert_eq!(code.shown(&frames), code.shown(&expected), "{what}: by steps");
    assert_eq!(outcome, OUTCOME_COMPLETE, "{what}: by steps");
    let walk = recording.walk_copied(code);
    assert_eq!(code.shown(&walk.frames_avma), code.shown(&expected), "{what}: copied");
    assert_eq!(walk.outcome, StackOutcome::Complete, "{what}: copied");
    assert!(!walk.used_frame_pointers, "{what}");
}

/// As [`assert_same`], with framehop, which passes no signal frame.
fn assert_same_as_framehop(code: &Code, recording: &Recording, what: &str) {
    assert_same(code, recording, what);
    let (frames, reached_end) = recording.walk_by_framehop(code);
    assert_eq!(code.shown(&frames), code.shown(&recording.expected_frames()), "{what}: framehop");
    assert!(reached_end, "{what}: framehop");
}

/// Where a stack is to be recorded.
type Point<'point> = &'point mut dyn FnMut();

/// A frame of some size, aligned as the type wants it.
#[inline(never)]
fn with_frame<T: Default>(depth: u32, point: Point<'_>) {
    let mut space = T::default();
    black_box(&mut space);
    descend(depth, point);
    black_box(&mut space);
}

#[derive(Default)]
#[repr(align(64))]
struct Aligned {
    _space: [u64; 24],
}

#[derive(Default)]
#[repr(align(4096))]
struct PageAligned {
    _space: [u64; 3],
}

/// Each level has a frame of another kind.
#[inline(never)]
fn descend(depth: u32, point: Point<'_>) {
    let Some(deeper) = depth.checked_sub(1) else {
        point();
        return;
    };
    match depth % 7 {
        0 => with_frame::<[u8; 1]>(deeper, point),
        1 => with_frame::<[u64; 32]>(deeper, point),
        2 => with_frame::<Aligned>(deeper, point),
        3 => through_qsort(deeper, point),
        4 => with_frame::<[[u64; 16]; 2]>(deeper, point),
        5 => with_frame::<PageAligned>(deeper, point),
        _ => caught(deeper, point),
    }
    black_box(depth);
}

/// Rust's own frames of a panic's landing.
#[inline(never)]
fn caught(depth: u32, point: Point<'_>) {
    let deeper = std::panic::AssertUnwindSafe(|| descend(depth, point));
    std::panic::catch_unwind(deeper).unwrap();
}

struct Callback<'point> {
    depth: u32,
    point: Point<'point>,
    is_called: bool,
}

extern "C" fn compare(_one: *const c_void, _other: *const c_void, callback: *mut c_void) -> c_int {
    // SAFETY: this is what `through_qsort` passes, which nobody else has meanwhile.
    let callback = unsafe { &mut *callback.cast::<Callback<'_>>() };
    if !std::mem::replace(&mut callback.is_called, true) {
        descend(callback.depth, callback.point);
    }
    0
}

unsafe extern "C" {
    fn qsort_r(
        base: *mut c_void,
        count: usize,
        size: usize,
        compare: extern "C" fn(*const c_void, *const c_void, *mut c_void) -> c_int,
        argument: *mut c_void,
    );
}

/// Called back by the C library.
#[inline(never)]
fn through_qsort(depth: u32, point: Point<'_>) {
    let mut numbers = [3_u64, 1, 2];
    let mut callback = Callback { depth, point, is_called: false };
    // SAFETY: the array has that many elements of that size; the callback is what `compare`
    // expects, and outlives the call.
    unsafe {
        qsort_r(
            numbers.as_mut_ptr().cast(),
            numbers.len(),
            size_of::<u64>(),
            compare,
            (&raw mut callback).cast(),
        );
    }
    assert!(callback.is_called);
}

#[test]
fn recursion_through_frames_of_all_kinds_is_walked_to_the_end() {
    let code = Code::of_this_process();
    for depth in 0..40 {
        let mut recording = Recording::new();
        descend(depth, &mut || record(&mut recording));
        assert!(recording.truth.len() > depth as usize, "the stack is as deep as that");
        assert_same_as_framehop(&code, &recording, &format!("depth {depth}"));
    }
}

#[test]
fn stacks_of_other_threads_are_walked_to_the_end() {
    let code = Code::of_this_process();
    let run = |bytes: usize, depth: u32| {
        let mut recording = Recording::new();
        std::thread::scope(|scope| {
            std::thread::Builder::new()
                .stack_size(bytes)
                .spawn_scoped(scope, || descend(depth, &mut || record(&mut recording)))
                .unwrap();
        });
        recording
    };
    for (bytes, depth) in [(1 << 20, 3), (1 << 21, 22), (1 << 22, 41)] {
        assert_same_as_framehop(&code, &run(bytes, depth), &format!("{bytes} bytes, {depth}"));
    }
}

#[test]
fn signal_handlers_are_passed_to_where_they_interrupted() {
    let code = Code::of_this_process();
    let recordings = signals::record_each(libc::SIGUSR1, 0, || {
        descend(9, &mut || signals::raise(libc::SIGUSR1));
        through_qsort(4, &mut || signals::raise(libc::SIGUSR1));
    });
    assert_eq!(recordings.len(), 2);
    for recording in recordings {
        assert_same(&code, &recording, "raised");
    }
}

/// The copy ends with the handler's stack; by steps, which read all memory, it goes on.
#[test]
fn a_signal_handler_with_a_stack_of_its_own_ends_a_copy() {
    let code = Code::of_this_process();
    let recordings = signals::record_each(libc::SIGUSR2, libc::SA_ONSTACK, || {
        signals::with_other_stack(|| descend(9, &mut || signals::raise(libc::SIGUSR2)));
    });
    let [recording] = recordings.as_slice() else { panic!("one signal") };
    let expected = recording.expected_frames();
    let walk = recording.walk_copied(&code);
    assert_eq!(walk.outcome, StackOutcome::CopyTooShort);
    let count = walk.frames_avma.len();
    assert!((3..expected.len()).contains(&count), "{count} of {}", expected.len());
    assert_eq!(code.shown(&walk.frames_avma), code.shown(&expected[..count]));
}

/// Calls of functions that a timer is likely to interrupt somewhere: in their prologues and
/// epilogues, in the procedure linkage table, in the vDSO.
fn busy(until: Instant) {
    let mut text = String::new();
    let mut numbers: Vec<u64> = (0..64).collect();
    while Instant::now() < until {
        text.clear();
        write!(text, "{:?} {}", numbers.first(), numbers.len()).unwrap();
        numbers.rotate_left(1);
        numbers.sort_unstable();
        let mut is_called = false;
        through_qsort(0, &mut || is_called = true);
        descend(8, &mut || is_called = false);
        // SAFETY: getppid takes and changes nothing.
        black_box((unsafe { libc::getppid() }, &text, is_called));
    }
}

#[test]
fn stacks_interrupted_anywhere_are_walked_to_the_end() {
    let code = Code::of_this_process();
    let recordings = signals::record_each(libc::SIGPROF, libc::SA_RESTART, || {
        signals::with_timer(Duration::from_micros(300), || {
            busy(Instant::now() + Duration::from_secs(2));
        });
    });
    assert!(recordings.len() > 50, "only {} signals", recordings.len());
    let (mut complete, mut places) = (0, HashSet::<u64>::new());
    for recording in &recordings {
        let expected = recording.expected_frames();
        let (frames, outcome) = recording.walk_by_steps(&code);
        let walk = recording.walk_copied(&code);
        places.extend(expected.get(3));
        if outcome == OUTCOME_COMPLETE && walk.outcome == StackOutcome::Complete {
            assert_eq!(code.shown(&frames), code.shown(&expected), "by steps");
            assert_eq!(code.shown(&walk.frames_avma), code.shown(&expected), "copied");
            complete += 1;
        } else {
            // Then there is code without unwind information, and all say so.
            assert_ne!(walk.outcome, StackOutcome::Complete, "{:?}", code.shown(&expected));
            assert_ne!(outcome, OUTCOME_COMPLETE, "{:?}", code.shown(&expected));
        }
    }
    let count = recordings.len();
    eprintln!("{complete} of {count} interrupted stacks complete, {} places", places.len());
    assert!(places.len() > 20, "interrupted at {} places only", places.len());
    assert!(complete * 100 >= count * 99, "{complete} of {count} complete");
}

/// Such as the procedure linkage tables of LLVM's linker. What frame pointers led to may have skipped any number of frames, however
/// well it ends.
#[test]
fn what_frame_pointers_led_to_is_never_complete() {
    let code = Code::of_this_process();
    let mut recording = Recording::new();
    descend(20, &mut || record(&mut recording));
    let interrupted = recording.interrupted_without_information(&code, 1);
    let expected = &recording.truth[recording.truth.len() - 2..];
    let (frames, outcome) = interrupted.walk_by_steps(&code);
    assert_eq!(code.shown(&frames[1..]), code.shown(expected), "by steps");
    assert_eq!(outcome, OUTCOME_FRAME_POINTERS_ENDED);
    let walk = interrupted.walk_copied(&code);
    assert_eq!(code.shown(&walk.frames_avma), code.shown(&frames), "copied");
    assert_eq!(walk.outcome, StackOutcome::WithFramePointers);
}

/// However a stack is cut, what is found is a beginning of it.
#[test]
fn stacks_cut_short_say_so() {
    let code = Code::of_this_process();
    let mut recording = Recording::new();
    descend(20, &mut || record(&mut recording));
    let expected = recording.expected_frames();
    let whole = recording.bytes.clone();
    for length in (0..whole.len()).step_by(40) {
        recording.bytes = whole[..length].to_vec();
        let walk = recording.walk_copied(&code);
        assert_eq!(walk.frames_avma, expected[..walk.frames_avma.len()], "{length} bytes");
        if walk.outcome != StackOutcome::Complete {
            assert_eq!(walk.outcome, StackOutcome::CopyTooShort, "{length} bytes");
        }
        let (frames, outcome) = recording.walk_by_steps(&code);
        assert_eq!(frames, expected[..frames.len()], "{length} bytes");
        assert!(matches!(outcome, OUTCOME_COMPLETE | OUTCOME_STACK_UNREADABLE));
    }
}
