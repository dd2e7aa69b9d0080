//! What `docs/overhead.md` says before its numbers.

pub(super) const METHOD: &str = "\
# What tracing costs

<!-- docs/results/overhead.json: `cargo xtask bench --render` writes this file -->

A traced call of an allocator's function is a *trap*: the processor stops at the probed instruction, the kernel runs a
program, and the process goes on. That takes on the order of a microsecond, whatever the program does, and sampling does
not remove it: the kernel has to be entered to decide that a call is none of the sample. So a program that does
little but allocate becomes many times slower under memscope, and one that allocates now and then does not notice.
memscope can choose what it does in the trap, how many traps there are and on which instructions they are; the numbers here
say how well, against what no tracer by probes can go below, and against tools that work inside the process.

`cargo xtask bench --update` measures everything below, in one go, and writes it into
[docs/results/overhead.json](results/overhead.json), of which this file and the table in the README are made. Numbers of
other machines differ, and those of one machine from day to day; compare ratios, and only those of one run.

## What was measured, and how

- Each **program** starts, says that it is ready, waits until the tracer has come to it, and is told to work. The time is that
  from there until its work is done. Not in it are the start of the program, of memscope and of valgrind, and what tools do
  after the end. Loops measure themselves, with nothing but malloc and free between two readings of the clock; untraced, and with
  jemalloc's sampling, they run 20 times as often, to last long enough. redis-server
  is measured by the rates that redis-benchmark, with 10 clients on the same machine, prints.
- In each **round**, every tracer has its turn once for a program, and each round begins with another one. Slowdowns and
  ratios are made within a round; shown are medians, with the least and the most in brackets.
- What is compared **side by side**, because the limit is near, is measured in another way besides: in each round a program under the one
  tracer and one under the other work at the same time, on one processor, which they take by turns of some milliseconds, so
  that the pace of the machine is the same for both; their tracers are on another processor. Each does what takes it about a second;
  compared are their processor times. Both then work beside memscope's reader, which slows the processor down if it shares a core with
  that; one after the other only memscope's program does. So such a claim has both figures below, and the one of side by side decides.
- Each run is **checked**, and one that fails its check is no result and fails the benchmark: programs compute something that
  they verify, and the same checksum in every run; memscope's JSON export, heaptrack, memcheck, massif, DHAT, bpftrace and
  jemalloc's profile of every allocation must have seen at least as many allocations as the program is known to make;
  memscope may not have lost a single event. A profile by samples must not be empty. How often programs that do nothing
  run is counted in a run of its own, because to count takes time.
- **Processor time** is the program's, and with valgrind, heaptrack and jemalloc what they do in its process. Other programs
  on the machine change it less than they change the time. What memscope takes beside it, on another processor if there is
  one, has a table of its own; in it is what memscope does to start, most of which is the kernel's check of its programs.
- A virtual machine shares its processors with others, and is slower by up to a half while these work, for seconds at a time. So a fixed
  computation is made on each processor before a program and its tracer are started and when both are gone; the first until it takes less than
  1.25 times its quickest, for two seconds at most. If it takes longer afterwards, the run is repeated, twice at most, unless the program worked for more
  than two seconds. How many results are of such runs all the same is told below.
- The programs and the tracers have the same priority, which is raised so that others on the machine disturb them less.

The tracers:

- **memscope** as it is without further options: every allocation and every free with its time, each allocation with its
  whole call chain. With `--stacks caller`, without the chain; with `--sample 512KiB`, a part of the allocations. With
  `--max-overhead 5%`, in windows of time only, so that probes and memscope together take no more than a twentieth of
  what the program does by itself; this is measured on programs that work for ten seconds (`…-long`), because in one
  second memscope's start alone costs more. It is measured side by side only, with an untraced program that does as much, and what
  memscope took while it recorded is added. What `--probes host` and `--mappings` cost processes that are not traced is measured while memscope traces
  one that sleeps; where the kernel lets no programs run in its functions, `--mappings` runs them at the entry and return of all
  system calls (`memscope doctor` tells).
- **floor**: programs that do nothing, at the entry and the return of the functions that give blocks and at the entry of those
  that end them, each on its cheapest instruction, attached the cheapest way that this kernel has: what it costs to
  follow calls by uprobes. **empty**: the same where memscope's own programs are. Of most calls of malloc that is one
  place, in their midst, where the block is known already; so memscope can cost less than the floor, and is compared with
  both. **bare trap**: as empty, but at no return.
- **bpftrace, naive**: what one would write first, and what bcc's memleak does: probes at the first instruction of malloc and
  free and at malloc's return, stacks counted by the kernel, live blocks in a map. bpftrace 0.17 probes every process that
  maps the file, so the program gets a copy of the file to itself.
- **heaptrack** with its interpreter beside the program, as it runs by default, which the program waits for at first; and with
  `--raw`, which leaves the interpreter for later. memscope gives names to addresses beside the program too. **valgrind**'s tools, which run one
  thread at a time. **jemalloc**'s profiler, which needs jemalloc as the allocator: compare with the row above it, not with
  the C library's. redis-server uses jemalloc in all rows.

The programs are in [tests/programs](../tests/programs/README.md). Python allocates small objects from pools of its own, which no
tracer of malloc sees (`python-json`); with `PYTHONMALLOC=malloc` each object is a block of malloc, which is the worst
case of a Python program (`python-malloc`, `python-long`). What a tracer by probes costs is decided by how often a program allocates: each table says it.
";
