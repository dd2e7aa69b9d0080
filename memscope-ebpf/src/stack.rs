//! Walks the stack of the current thread and gives it a number.
//!
//! This is the door behind which stacks are made: [`capture`] takes the registers at a
//! call's return and gives the number of a stack whose frames have been sent. Each step is
//! [`memscope_ebpf::unwind::step`]; what is here finds its rule and its memory.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{self, read_volatile, write_volatile},
};

use aya_ebpf::{
    bindings::pt_regs,
    helpers::{
        bpf_get_current_task, bpf_probe_read_user,
        generated::{
            bpf_loop, bpf_probe_read_kernel as read_kernel_bytes,
            bpf_probe_read_user as read_user_bytes,
        },
    },
};
use memscope_common::{
    control::{COUNTER_LOST_STACK, MEMO_CALLERS, ThreadState, WINDOW_WORDS, WalkMemo, WalkState},
    record::{
        Header, KIND_STACK, MAX_FRAMES, OUTCOME_CALLER_ONLY, OUTCOME_COMPLETE, OUTCOME_DEPTH_LIMIT,
        OUTCOME_FRAME_POINTERS_ENDED, OUTCOME_NO_TABLES, OUTCOME_TABLES_REPLACED,
        OUTCOME_UNKNOWN_CODE, STACK_TABLES_OLD, STACK_USED_FRAME_POINTERS, StackHeader,
    },
    unwind::{
        CACHE_WORDS, CFA_END, CFA_NONE, CFA_SIGNAL, CFA_SP, CHUNK_WORDS, KernelOffsets,
        MAPPING_TABLE, MAX_CHUNKS, MAX_RULES, MAX_SPACE_MAPPINGS, Mapping, MappingList, PAGE_SHIFT,
        RULE_FRAME_POINTER, Rule, RuleCache, Rules, Saved, Walk,
    },
};
use memscope_ebpf::{
    mix, stack_seed,
    unwind::{
        CachePlace, ReadFor, SIGRETURN_CODE, Word, depends_on_bp, depends_on_first_bx, rule_among,
        step,
    },
};

use crate::{
    copy, emit,
    maps::{CHUNKS, ChunkMap, EPOCHS, MAPPINGS, RULE_CACHE, RULES, SPACES, SURROUNDINGS},
    memo::{self, Begin},
    sent, settings, threads,
};

/// Written by the loader.
#[unsafe(no_mangle)]
static KERNEL_OFFSETS: KernelOffsets = KernelOffsets {
    task_utask: 0,
    utask_return_instances: 0,
    instance_stack: 0,
    instance_return: 0,
    instance_next: 0,
    known: 0,
};

/// Return addresses that uretprobes of one thread can hide at once
/// (`MAX_URETPROBE_DEPTH`, kernel/events/uprobes.c).
const MAX_RETURN_INSTANCES: u32 = 64;

/// Where a function returns to, at its entry; 0 if that cannot be read.
#[inline(always)]
pub(crate) fn return_address(sp_avma: u64) -> u64 {
    // SAFETY: the helper checks the user address and fails on an unreadable one.
    unsafe { bpf_probe_read_user(sp_avma as *const u64) }.unwrap_or(0)
}

/// Registers of the caller, just after the call returned to it, or of a thread where it was
/// interrupted.
pub(crate) struct CallerRegisters {
    /// Where the call returned to; or one byte behind the beginning of the instruction that was
    /// interrupted, so that the byte before it is part of the instruction being executed as well.
    pub(crate) return_avma: u64,
    /// 1 if a call returned there, else 0.
    pub(crate) returns: u64,
    /// The probe in the midst of a function in which these are its registers, and not its caller's; else 0.
    pub(crate) in_probe: u16,
    /// `STACK_` flags of a copy that begins with them.
    pub(crate) begins: u16,
    pub(crate) sp_avma: u64,
    pub(crate) rbp: u64,
    pub(crate) rbx: u64,
    pub(crate) r12_to_r15: [u64; 4],
}

impl CallerRegisters {
    /// Those of the program, while its thread is in the kernel: after a system call, to which the
    /// call is one as to a function, or where it was interrupted.
    ///
    /// # Safety
    ///
    /// `registers` are those of the current task. The kernel keeps them as long as it is in it,
    /// and reads 0 where it does not.
    #[inline(always)]
    pub(crate) unsafe fn of_task(registers: *const pt_regs, after_call: bool) -> Self {
        let returns = u64::from(after_call);
        // SAFETY: as the caller says.
        unsafe {
            let return_avma = read_volatile(&raw const (*registers).rip).wrapping_add(1 - returns);
            let sp_avma = read_volatile(&raw const (*registers).rsp);
            Self::with_saved(registers, return_avma, returns, sp_avma)
        }
    }

    /// With the registers that calls leave as they are, from these.
    ///
    /// # Safety
    ///
    /// `registers` are those of the current task, or the context of a uprobe, which is them.
    #[inline(always)]
    pub(crate) unsafe fn with_saved(
        registers: *const pt_regs,
        return_avma: u64,
        returns: u64,
        sp_avma: u64,
    ) -> Self {
        // Volatile, because LLVM would merge loads into one at a computed distance from a context,
        // which the verifier refuses ("dereference of modified ctx", 6.18).
        // SAFETY: as the caller says.
        unsafe {
            Self {
                return_avma,
                returns,
                in_probe: 0,
                begins: 0,
                sp_avma,
                rbp: read_volatile(&raw const (*registers).rbp),
                rbx: read_volatile(&raw const (*registers).rbx),
                r12_to_r15: [
                    read_volatile(&raw const (*registers).r12),
                    read_volatile(&raw const (*registers).r13),
                    read_volatile(&raw const (*registers).r14),
                    read_volatile(&raw const (*registers).r15),
                ],
            }
        }
    }

    /// The number of the stack.
    #[inline(always)]
    pub(crate) fn stack(&self, thread: &mut ThreadState, header: Header) -> u32 {
        let removals = removals_of(&header);
        if settings::caller_only() != 0 {
            capture_caller(thread, self.return_avma, header, removals)
        } else {
            capture(thread, self, header, removals)
        }
    }
}

/// What the steps of a walk work on.
#[repr(C)]
struct Tools {
    state: *mut WalkState,
    rules: *const Rules,
    cache: *mut RuleCache,
    /// Where the words are noted that are read.
    memo: *mut WalkMemo,
}

/// By which tables a stack is walked.
#[derive(Clone, Copy)]
struct Space {
    /// What had been unmapped before, when it was last looked.
    removals: u32,
    /// Start value of the stack's identity.
    seed: u64,
    /// Where the word is that leads to the tables, and what it was.
    place: *const u64,
    word: u64,
}

impl Space {
    #[inline(always)]
    fn of(header: &Header, removals: u32) -> Option<Self> {
        let place = SPACES.get_ptr(u32::from(header.target))?;
        // SAFETY: points to an element of an array map, which is never removed.
        let word = unsafe { read_volatile(place) };
        let seed = stack_seed(header.target, header.image, removals);
        Some(Self { removals, seed, place, word })
    }
}

#[inline(always)]
fn removals_of(header: &Header) -> u32 {
    match EPOCHS.get_ptr(u32::from(header.target)) {
        // SAFETY: points to an element of an array map, which is never removed.
        Some(epoch) => unsafe { read_volatile(&raw const (*epoch).removals) },
        None => 0,
    }
}

/// Walks, sends the frames if they were not sent before, and gives the stack's number.
#[inline(always)]
pub(crate) fn capture(
    thread: &mut ThreadState,
    caller: &CallerRegisters,
    header: Header,
    removals: u32,
) -> u32 {
    let Some(space) = Space::of(&header, removals) else { return 0 };
    let begin = Begin {
        pc_avma: caller.return_avma,
        sp_avma: caller.sp_avma,
        rbp: caller.rbp,
        rbx: caller.rbx,
        space: space.word,
        seed: space.seed,
    };
    let remembered = memo::remembered(&begin, thread);
    if remembered >> 32 != 0 {
        return (remembered >> 32) as u32;
    }
    let Some(noted_in) = memo::noted_in(remembered as u32) else {
        emit::lose(COUNTER_LOST_STACK);
        return 0;
    };
    let number = walk_and_announce(thread, caller, header, &space, noted_in);
    memo::release(noted_in);
    number
}

/// As [`capture`], where no memo tells the stack. `memo`: where the walk is noted.
#[inline(always)]
fn walk_and_announce(
    thread: &mut ThreadState,
    caller: &CallerRegisters,
    header: Header,
    space: &Space,
    memo: *mut WalkMemo,
) -> u32 {
    let Some(state) = threads::walk_state(thread) else {
        emit::lose(COUNTER_LOST_STACK);
        return 0;
    };
    let target = u32::from(header.target);
    // SAFETY: `state` is this thread's own live map value.
    let walk = unsafe { &mut (*state).walk };
    walk.frame.pc_avma = caller.return_avma - (1 - caller.returns);
    walk.frame.returns = caller.returns;
    walk.frame.sp_avma = caller.sp_avma;
    walk.frame.bp = caller.rbp;
    walk.frame.bx = Saved::value(caller.rbx);
    emit::clear(&mut walk.frame.r10.place);
    emit::clear(&mut walk.flags);
    emit::clear(&mut walk.return_slot_avma);
    walk.begins_in_probe = caller.in_probe.into();
    let tables_read_ns = walk_up(state, caller, &header, space, memo);
    let outcome = walk.outcome as u16;
    let flags = walk.flags as u16;
    let identity = mix(mix(walk.hash, walk.outcome), walk.flags);
    let walked_bytes = walk.frame.sp_avma.wrapping_sub(caller.sp_avma);
    if copy::is_wanted(outcome, flags, walked_bytes) && copy::is_allowed(target, header.time_ns) {
        // Each copy is a stack of its own, as what was not walked may differ.
        let number = sent::number_for_once();
        if copy::send(caller, header, number, outcome, flags | caller.begins) {
            memo::keep(memo, walk, 0);
            return number as u32;
        }
    }
    let found = StackHeader {
        header: Header { kind: KIND_STACK, ..header },
        stack: 0,
        tables_read_ns,
        outcome,
        flags,
        frame_count: (walk.frame_count as u32).min(MAX_FRAMES as u32),
    };
    let number = announce(thread, identity, found, |header| {
        // SAFETY: `state` is this thread's own live map value.
        unsafe {
            (*state).stack.header = header;
            emit::send_stack(&raw const (*state).stack)
        }
    });
    let is_sent = thread.last_stack == identity;
    memo::keep(memo, walk, if is_sent { u64::from(number) } else { 0 });
    number
}

/// Notes the caller only.
#[inline(always)]
pub(crate) fn capture_caller(
    thread: &mut ThreadState,
    return_avma: u64,
    header: Header,
    removals: u32,
) -> u32 {
    let identity = mix(stack_seed(header.target, header.image, removals), return_avma);
    let found = StackHeader {
        header: Header { kind: KIND_STACK, ..header },
        stack: 0,
        tables_read_ns: 0,
        outcome: OUTCOME_CALLER_ONLY,
        flags: 0,
        frame_count: 1,
    };
    announce(thread, identity, found, |header| emit::send_caller(header, return_avma))
}

/// Gives a stack its number, and has its frames sent if they were not sent before.
#[inline(always)]
fn announce(
    thread: &mut ThreadState,
    identity: u64,
    mut found: StackHeader,
    send: impl FnOnce(StackHeader) -> bool,
) -> u32 {
    if thread.last_stack == identity {
        return thread.last_stack_number as u32;
    }
    let numbered = sent::number_of(identity, found.header.time_ns);
    if numbered.number == 0 {
        emit::lose(COUNTER_LOST_STACK);
        return 0;
    }
    if !numbered.is_sent {
        found.stack = numbered.number;
        // Marked as sent only once it was.
        if !send(found) {
            return numbered.number as u32;
        }
        numbered.mark_sent();
    }
    thread.last_stack = identity;
    thread.last_stack_number = numbered.number;
    numbered.number as u32
}

/// Walks as far as it goes; when the address space was looked at for its tables, or 0.
#[inline(always)]
fn walk_up(
    state: *mut WalkState,
    caller: &CallerRegisters,
    header: &Header,
    space: &Space,
    memo: *mut WalkMemo,
) -> u64 {
    // SAFETY: `state` is this thread's own live map value.
    let walk = unsafe { &mut (*state).walk };
    // SAFETY: as above.
    unsafe { (*state).window_avma = 0 };
    walk.frame_count = 0;
    walk.hash = space.seed;
    walk.outcome = u64::from(OUTCOME_NO_TABLES);
    let tables_read_ns = walk_by_tables(state, header, space, memo);
    if walk.frame_count == 0 {
        let first_avma = first_avma(caller);
        // SAFETY: as above.
        unsafe { (*state).stack.frames_avma[0] = first_avma };
        walk.frame_count = 1;
        walk.hash = mix(space.seed, first_avma);
    }
    tables_read_ns
}

/// The first frame's address, without tables.
#[inline(always)]
fn first_avma(caller: &CallerRegisters) -> u64 {
    if caller.in_probe == 0 {
        return caller.return_avma;
    }
    let cfa_offset = to_caller(caller.in_probe.into()).cfa_offset as i64 as u64;
    return_address(caller.sp_avma.wrapping_add(cfa_offset).wrapping_sub(8))
}

/// As [`walk_up`], if there are tables.
#[inline(always)]
fn walk_by_tables(
    state: *mut WalkState,
    header: &Header,
    space: &Space,
    memo: *mut WalkMemo,
) -> u64 {
    // SAFETY: `state` is this thread's own live map value.
    let walk = unsafe { &mut (*state).walk };
    let (Some(rules), Some(cache)) = (RULES.get_ptr(0), RULE_CACHE.get_ptr_mut(0)) else {
        return 0;
    };
    let head = space.word as u32;
    if space.word == 0 {
        return 0;
    }
    let Some(list) = MAPPINGS.get_ptr(head) else { return 0 };
    // SAFETY: heads of lists have the size of mappings, and are plain integers.
    let list = unsafe { *list.cast::<MappingList>() };
    if list.image as u16 != header.image {
        return 0;
    }
    if list.removals != space.removals {
        walk.flags |= u64::from(STACK_TABLES_OLD);
    }
    walk.first_mapping = u64::from(head) + 1;
    walk.mapping_count = u64::from(list.count);
    walk.generation = u64::from(list.generation);
    walk.outcome = u64::from(OUTCOME_DEPTH_LIMIT);
    walk_by(&mut Tools { state, rules, cache, memo });
    // SAFETY: points to an element of an array map, which is never removed.
    if unsafe { read_volatile(space.place) } != space.word {
        walk.outcome = u64::from(OUTCOME_TABLES_REPLACED);
        walk.frame_count = 0;
    }
    list.read_at_ns
}

/// How the caller is found from a probe in the midst of a function.
#[inline(always)]
fn to_caller(probe: u32) -> Rule {
    SURROUNDINGS.get(probe).map_or(Rule::of_kind(CFA_END), |probe| probe.to_caller)
}

/// Most steps of a walk: one for each frame, and one from a probe in the midst of a function, which is none.
const MAX_STEPS: u32 = MAX_FRAMES as u32 + 1;

/// Makes the steps, and has the words noted that they read.
#[inline(always)]
fn walk_by(tools: &mut Tools) {
    let tools = ptr::from_mut(tools).cast::<c_void>();
    // SAFETY: the callback is given what it expects, which outlives the loop.
    unsafe {
        bpf_loop(MAX_STEPS, walk_one as *mut c_void, tools, 0);
    }
}

/// Notes the frame and goes to its caller; 1 ends the loop, as there is none.
///
/// # Safety
///
/// `tools` is what [`walk_by_tables`] gives to the loop.
unsafe extern "C" fn walk_one(_index: u32, tools: *mut Tools) -> i64 {
    // SAFETY: see above; the loop calls one callback at a time.
    let tools = unsafe { &mut *tools };
    let (state, memo) = (tools.state, tools.memo);
    // SAFETY: `state` is this thread's own live map value.
    let walk = unsafe { &mut (*state).walk };
    if walk.frame_count >= MAX_FRAMES as u64 {
        return 1;
    }
    let (pc_avma, sp_avma) = (walk.frame.pc_avma, walk.frame.sp_avma);
    // As a walk says where it begins.
    let begin_avma = pc_avma.wrapping_add(1).wrapping_sub(walk.frame.returns);
    let mut rule;
    if walk.begins_in_probe == 0 {
        let found = rule_here(walk, tools.cache);
        if walk.frame.pc_avma != pc_avma {
            memo::spoil(memo);
        }
        if found == 0 {
            note(state, 1 - walk.frame.returns);
            walk.outcome = u64::from(OUTCOME_UNKNOWN_CODE);
            return 1;
        }
        // SAFETY: the index is below MAX_RULES.
        rule = unsafe { (*tools.rules).rules[found as usize & (MAX_RULES - 1)] };
        if rule.cfa == CFA_NONE {
            memo::spoil(memo);
            // SAFETY: the helper checks the user address and fails on an unreadable one.
            let code = unsafe { bpf_probe_read_user(walk.frame.pc_avma as *const u64) };
            if code == Ok(SIGRETURN_CODE) {
                rule = Rule::of_kind(CFA_SIGNAL);
            } else {
                walk.flags |= u64::from(STACK_USED_FRAME_POINTERS);
            }
        }
        // Nothing was called where a signal came in, nor just before what its handler returns
        // to: there the address itself is the one to look up, not the one before it.
        note(state, if rule.cfa == CFA_SIGNAL { 1 } else { 1 - walk.frame.returns });
    } else {
        rule = to_caller(walk.begins_in_probe as u32);
        emit::clear(&mut walk.begins_in_probe);
    }
    if depends_on_bp(&rule) {
        memo::depend_on_bp(memo);
    }
    if depends_on_first_bx(&walk.frame, &rule) {
        memo::depend_on_bx(memo);
    }
    let mut outcome = step(&mut walk.frame, &rule, |avma, read_for| {
        let word = read(state, avma);
        match read_for {
            ReadFor::Step => memo::note(memo, avma, word.value),
            ReadFor::CallerBp => memo::note_bp(memo, avma, word.value),
        }
        word
    });
    if outcome == 0 {
        walk.return_slot_avma = walk.frame.sp_avma.wrapping_sub(8);
        if walk.frame_count <= MEMO_CALLERS as u64 && rule.cfa == CFA_SP {
            memo::note_slot(begin_avma, sp_avma, walk.return_slot_avma);
        }
        return 0;
    }
    if outcome == OUTCOME_COMPLETE && walk.flags & u64::from(STACK_USED_FRAME_POINTERS) != 0 {
        outcome = OUTCOME_FRAME_POINTERS_ENDED;
    }
    walk.outcome = u64::from(outcome);
    1
}

/// Adds the frame to the stack and to its identity, at a distance from its address.
#[inline(always)]
fn note(state: *mut WalkState, distance: u64) {
    // SAFETY: `state` is this thread's own live map value; the index is below MAX_FRAMES.
    unsafe {
        let walk = &mut (*state).walk;
        let avma = walk.frame.pc_avma.wrapping_add(distance);
        (*state).stack.frames_avma[walk.frame_count as usize & (MAX_FRAMES - 1)] = avma;
        walk.frame_count += 1;
        walk.hash = mix(walk.hash, avma);
    }
}

/// A word of the target's stack, mostly from the window that was read before.
#[inline(always)]
fn read(state: *mut WalkState, avma: u64) -> Word {
    const WINDOW_BYTES: u64 = WINDOW_WORDS as u64 * 8;
    // SAFETY: `state` is this thread's own live map value.
    let offset = avma.wrapping_sub(unsafe { (*state).window_avma });
    if offset < WINDOW_BYTES && offset & 7 == 0 {
        let mut inside = offset;
        // LLVM sees that the mask changes nothing and drops it; the verifier, which
        // needs it, does not see. An empty `asm!` is refused ("Invalid line_info").
        // SAFETY: it changes nothing but its operand.
        unsafe {
            asm!("{0} &= 504", inout(reg) inside, options(pure, nomem, nostack, preserves_flags));
        }
        // SAFETY: 504 is the offset of the last word of the window.
        return Word::read(unsafe {
            (&raw const (*state).window).cast::<u8>().add(inside as usize).cast::<u64>().read()
        });
    }
    // SAFETY: the helper checks the user address; the window has the size given.
    let failed = unsafe {
        read_user_bytes(
            (&raw mut (*state).window).cast::<c_void>(),
            WINDOW_BYTES as u32,
            avma as *const c_void,
        )
    };
    if failed == 0 {
        // SAFETY: as above.
        unsafe {
            (*state).window_avma = avma;
            return Word::read((*state).window[0]);
        }
    }
    // Near the end of the stack.
    let mut word = 0u64;
    // SAFETY: as above.
    unsafe {
        (*state).window_avma = 0;
        let failed = read_user_bytes((&raw mut word).cast::<c_void>(), 8, avma as *const c_void);
        if failed == 0 { Word::read(word) } else { Word::unreadable() }
    }
}

/// The rule for the code being executed; 0 if no code is known to be there.
#[inline(always)]
fn rule_here(walk: &mut Walk, cache: *mut RuleCache) -> u32 {
    let found = rule_at(walk, cache, walk.frame.pc_avma.wrapping_sub(walk.frame.returns));
    if found != 0 {
        return found;
    }
    // It may be the trampoline that the kernel has put in place of a return address.
    let return_avma = hidden_return(walk.return_slot_avma);
    if return_avma == 0 {
        return 0;
    }
    walk.frame.pc_avma = return_avma;
    search(walk, return_avma.wrapping_sub(1))
}

#[inline(always)]
fn rule_at(walk: &Walk, cache: *mut RuleCache, avma: u64) -> u32 {
    let Some(place) = CachePlace::of(avma, walk.generation as u32) else {
        return search(walk, avma);
    };
    // SAFETY: the index is below CACHE_WORDS; words are read and written whole.
    let slot = unsafe { &raw mut (*cache).words[place.index as usize & (CACHE_WORDS - 1)] };
    // SAFETY: as above.
    let known = place.rule(unsafe { read_volatile(slot) });
    if known != 0 {
        return known;
    }
    let rule = search(walk, avma);
    if rule != 0 {
        // SAFETY: as above.
        unsafe { write_volatile(slot, place.word(rule)) };
    }
    rule
}

/// Halvings that bring the most mappings down to one.
const MAPPING_STEPS: u32 = u32::BITS - MAX_SPACE_MAPPINGS.leading_zeros();

/// As [`rule_at`], in the tables.
#[inline(always)]
fn search(walk: &Walk, avma: u64) -> u32 {
    search_mappings(walk.first_mapping as u32, walk.mapping_count as u32, avma)
}

/// A function with a name of its own, which the verifier looks at once, whatever calls it.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn search_mappings(first: u32, count: u32, avma: u64) -> u32 {
    let (mut low, mut high) = (first, first.wrapping_add(count));
    for _ in 0..MAPPING_STEPS {
        if high.wrapping_sub(low) <= 1 {
            break;
        }
        let middle = low.wrapping_add(high.wrapping_sub(low) / 2);
        let Some(mapping) = mapping(middle) else { return 0 };
        if mapping.start_avma <= avma {
            low = middle;
        } else {
            high = middle;
        }
    }
    let Some(mapping) = mapping(low) else { return 0 };
    if count == 0 || avma < mapping.start_avma || avma >= mapping.end_avma {
        return 0;
    }
    if mapping.kind != MAPPING_TABLE {
        return RULE_FRAME_POINTER;
    }
    let offset = avma.wrapping_sub(mapping.bias_avma);
    let page = chunk_word(mapping.first_page.wrapping_add((offset >> PAGE_SHIFT) as u32));
    rule_among(page as u32, (page >> 32) as u32, offset as u32, chunk_word)
}

#[inline(always)]
fn mapping(index: u32) -> Option<&'static Mapping> {
    // SAFETY: elements of an array map are never removed; see `MappingList` for how
    // they are kept from changing.
    MAPPINGS.get_ptr(index).map(|mapping| unsafe { &*mapping })
}

/// A word of the tables; 0 if there is none.
#[inline(always)]
fn chunk_word(number: u32) -> u64 {
    const CHUNK_SHIFT: u32 = CHUNK_WORDS.trailing_zeros();
    let map = CHUNKS.get(number >> CHUNK_SHIFT & (MAX_CHUNKS as u32 - 1));
    match map.and_then(ChunkMap::chunk) {
        // SAFETY: the index is below CHUNK_WORDS.
        Some(chunk) => unsafe {
            read_volatile(&raw const chunk.words[number as usize & (CHUNK_WORDS - 1)])
        },
        None => 0,
    }
}

/// The true return address behind the trampoline of a uretprobe that lies at `slot_avma`:
/// the kernel keeps it with the address at which it was (`struct return_instance`).
/// 0 if there is none. A function as [`search_mappings`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn hidden_return(slot_avma: u64) -> u64 {
    if offset(&raw const KERNEL_OFFSETS.known) == 0 || slot_avma == 0 {
        return 0;
    }
    // SAFETY: the helper takes nothing.
    let task = unsafe { bpf_get_current_task() };
    let utask = kernel_word(task, offset(&raw const KERNEL_OFFSETS.task_utask));
    let instances = offset(&raw const KERNEL_OFFSETS.utask_return_instances);
    let mut search =
        HiddenReturn { instance: kernel_word(utask, instances), slot_avma, return_avma: 0 };
    // SAFETY: the callback is given what it expects, which outlives the loop.
    unsafe {
        bpf_loop(
            MAX_RETURN_INSTANCES,
            look_at_instance as *mut c_void,
            (&raw mut search).cast::<c_void>(),
            0,
        );
    }
    search.return_avma
}

/// A search along the list of a thread's return instances.
#[repr(C)]
struct HiddenReturn {
    instance: u64,
    slot_avma: u64,
    return_avma: u64,
}

/// One of the [`KERNEL_OFFSETS`]. Not all of them, as there is little room on the BPF stack.
#[inline(always)]
fn offset(place: *const u32) -> u32 {
    // SAFETY: part of a constant of the object, written before it was loaded.
    unsafe { read_volatile(place) }
}

/// 1 ends the loop.
///
/// # Safety
///
/// `search` is what [`hidden_return`] gives to the loop.
unsafe extern "C" fn look_at_instance(_index: u32, search: *mut HiddenReturn) -> i64 {
    // SAFETY: see above.
    let search = unsafe { &mut *search };
    if search.instance == 0 {
        return 1;
    }
    // Of several at one place, made by tail calls, the outermost holds the address.
    if kernel_word(search.instance, offset(&raw const KERNEL_OFFSETS.instance_stack))
        == search.slot_avma
    {
        search.return_avma =
            kernel_word(search.instance, offset(&raw const KERNEL_OFFSETS.instance_return));
    }
    search.instance = kernel_word(search.instance, offset(&raw const KERNEL_OFFSETS.instance_next));
    0
}

/// A word of kernel memory; 0 if it cannot be read.
#[inline(always)]
fn kernel_word(base: u64, offset: u32) -> u64 {
    let mut word = 0u64;
    // SAFETY: the helper fails on an address that cannot be read, and leaves zeros then.
    unsafe {
        read_kernel_bytes(
            (&raw mut word).cast::<c_void>(),
            8,
            base.wrapping_add(u64::from(offset)) as *const c_void,
        );
    }
    word
}
