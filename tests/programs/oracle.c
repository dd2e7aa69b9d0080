/*
 * The oracle: an LD_PRELOAD (or directly linked) library that writes down every allocator call of a program, to be
 * compared with what memscope saw. It forwards to glibc's __libc_* entry points, so it needs no dlsym and cannot
 * recurse; the calls that glibc makes inside itself (tcache flush at thread exit) do not pass through here.
 *
 * MEMSCOPE_ORACLE_LOG=<path> turns it on; each process image writes <path>.<pid>.<n>, n counting the images of one
 * pid. Without it, calls are only forwarded. The reader is the `oracle` module of the memscope-tests crate.
 *
 * Order: the slot index is the order of events. A free is recorded before it is forwarded, an allocation after, so
 * an address can never be recorded as reused before it was recorded as freed. A realloc does both: it claims one
 * slot before (left empty, its index stored in `begin`) and one after.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LOG_VARIABLE "MEMSCOPE_ORACLE_LOG="
#define LOG_BYTES (UINT64_C(1) << 33) /* sparse: only pages that are written take room */
#define ENVIRONMENT_BYTES (8u << 20)  /* more than the kernel accepts at exec with the usual stack limit */
#define NOT_LOGGED UINT64_MAX

/* glibc's own names of the allocator, below the symbols that this library replaces. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void __libc_free(void *);
extern void *__libc_memalign(size_t, size_t);
extern void *__libc_valloc(size_t);
extern void *__libc_pvalloc(size_t);

enum function {
    MALLOC = 1, /* 0 is a slot that was claimed and not (yet) written */
    CALLOC,
    REALLOC,
    REALLOCARRAY,
    FREE,
    POSIX_MEMALIGN,
    ALIGNED_ALLOC,
    MEMALIGN,
    VALLOC,
    PVALLOC,
};

struct record {
    _Atomic uint8_t function;
    uint8_t unused[3];
    uint32_t thread;
    uint64_t old_address;
    uint64_t result_address;
    uint64_t size; /* UINT64_MAX where n * size overflows */
    uint64_t alignment;
    uint64_t begin; /* the slot at which the old block ended; for all but realloc this record's own slot */
};
_Static_assert(sizeof(struct record) == 48, "the reader expects 48-byte records");

struct header {
    char magic[8];
    uint32_t version;
    uint32_t record_size;
    uint32_t pid;
    uint32_t parent_pid;
    uint32_t forked; /* 1: began by fork inside a logged image, so it inherited that image's blocks */
    uint32_t unused;
    uint64_t capacity;
    char exe[1024];
    _Alignas(64) _Atomic uint64_t count; /* slots claimed; on a line of its own */
    _Alignas(64) char padding[4096 - 1152];
};
_Static_assert(sizeof(struct header) == 4096, "the records begin on the second page");

enum phase { UNOPENED, OPENING, OPEN, DISABLED };

/* Lives on a MADV_WIPEONFORK page: in a forked child it reads as zero, so the child opens a log of its own and
   no getpid is needed on each call. A vfork child shares its parent's heap and rightly its log. */
struct state {
    _Atomic int phase;
    uint32_t pid;
    struct header *log;
};

static _Atomic(struct state *) shared_state;
static _Atomic int opened_before; /* plain memory, so a forked child still sees it */

/* Initial-exec: reading it can never reach the allocator. The pid tells a forked child that `tid` is its parent's. */
static __thread struct {
    uint32_t pid;
    uint32_t tid;
} self __attribute__((tls_model("initial-exec")));

/* An oracle that cannot log would make every comparison meaningless, so it ends the program. */
static _Noreturn void die(const char *what)
{
    static const char prefix[] = "oracle: cannot ";
    syscall(SYS_write, STDERR_FILENO, prefix, sizeof prefix - 1);
    syscall(SYS_write, STDERR_FILENO, what, strlen(what));
    syscall(SYS_write, STDERR_FILENO, "\n", 1);
    abort();
}

static void *map(size_t bytes, int flags, int descriptor)
{
    void *address = mmap(NULL, bytes, PROT_READ | PROT_WRITE, flags, descriptor, 0);
    if (address == MAP_FAILED)
        die("map memory");
    return address;
}

/* Copies the log path from the environment the kernel gave this image (getenv is not usable yet when the dynamic
   loader makes the first calls). Returns 0 where the variable is not set. */
static int find_log_path(char *path, size_t path_bytes)
{
    int descriptor = syscall(SYS_openat, AT_FDCWD, "/proc/self/environ", O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
        die("open /proc/self/environ");
    char *text = map(ENVIRONMENT_BYTES, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1);
    size_t length = 0;
    long got;
    while (length < ENVIRONMENT_BYTES - 1
           && (got = syscall(SYS_read, descriptor, text + length, ENVIRONMENT_BYTES - 1 - length)) > 0)
        length += got;
    syscall(SYS_close, descriptor);

    int found = 0;
    for (char *entry = text; entry < text + length; entry += strlen(entry) + 1) {
        if (strncmp(entry, LOG_VARIABLE, sizeof LOG_VARIABLE - 1) != 0)
            continue;
        const char *value = entry + sizeof LOG_VARIABLE - 1;
        if (strlen(value) >= path_bytes)
            die("use so long a log path");
        strcpy(path, value);
        found = path[0] != '\0';
        break;
    }
    munmap(text, ENVIRONMENT_BYTES);
    return found;
}

static void open_log(struct state *state)
{
    char base[3072];
    if (!find_log_path(base, sizeof base)) {
        atomic_store(&state->phase, DISABLED);
        return;
    }
    uint32_t pid = syscall(SYS_getpid);
    char path[4096];
    int descriptor;
    unsigned image = 0;
    do {
        snprintf(path, sizeof path, "%s.%u.%u", base, pid, image++);
        descriptor = syscall(SYS_openat, AT_FDCWD, path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (descriptor < 0 && errno == EEXIST);
    if (descriptor < 0)
        die("create its log");
    if (syscall(SYS_ftruncate, descriptor, LOG_BYTES) != 0)
        die("size its log");
    struct header *log = map(LOG_BYTES, MAP_SHARED | MAP_NORESERVE, descriptor);
    syscall(SYS_close, descriptor);
    /* A child must not reach its parent's log even by accident. */
    if (madvise(log, LOG_BYTES, MADV_DONTFORK) != 0)
        die("keep its log from children");

    memcpy(log->magic, "MSORACLE", sizeof log->magic);
    log->version = 1;
    log->record_size = sizeof(struct record);
    log->pid = pid;
    log->parent_pid = syscall(SYS_getppid);
    log->forked = atomic_exchange(&opened_before, 1);
    log->capacity = (LOG_BYTES - sizeof *log) / sizeof(struct record);
    if (syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", log->exe, sizeof log->exe - 1) < 0)
        die("read /proc/self/exe");

    state->pid = pid;
    state->log = log;
    atomic_store(&state->phase, OPEN);
}

/* The first call of an image, or of a forked child, arrives here. */
static struct header *prepare_log(void)
{
    int saved_errno = errno;
    /* A signal handler that allocates while its own thread is OPENING would wait for itself. */
    uint64_t all_signals = UINT64_MAX, old_signals;
    syscall(SYS_rt_sigprocmask, 0 /* SIG_BLOCK */, &all_signals, &old_signals, sizeof all_signals);

    struct state *state = atomic_load(&shared_state);
    if (state == NULL) {
        struct state *fresh = map(sizeof *fresh, MAP_PRIVATE | MAP_ANONYMOUS, -1);
        if (madvise(fresh, sizeof *fresh, MADV_WIPEONFORK) != 0)
            die("mark its state as wiped on fork");
        if (atomic_compare_exchange_strong(&shared_state, &state, fresh))
            state = fresh;
        else
            munmap(fresh, sizeof *fresh);
    }
    int expected = UNOPENED;
    if (atomic_compare_exchange_strong(&state->phase, &expected, OPENING))
        open_log(state);
    else
        while (atomic_load(&state->phase) == OPENING)
            syscall(SYS_sched_yield);

    syscall(SYS_rt_sigprocmask, 2 /* SIG_SETMASK */, &old_signals, NULL, sizeof old_signals);
    errno = saved_errno;
    return state->log;
}

static struct header *log_of_this_process(void)
{
    struct state *state = atomic_load_explicit(&shared_state, memory_order_acquire);
    if (state != NULL) {
        int phase = atomic_load_explicit(&state->phase, memory_order_acquire);
        if (phase == OPEN)
            return state->log;
        if (phase == DISABLED)
            return NULL;
    }
    return prepare_log();
}

/* An image that never allocates has a log too: an empty one. */
__attribute__((constructor)) static void open_at_start(void)
{
    log_of_this_process();
}

static uint64_t claim_slot(void)
{
    struct header *log = log_of_this_process();
    return log == NULL ? NOT_LOGGED : atomic_fetch_add(&log->count, 1);
}

/* `begin` is NOT_LOGGED for a call that has only one moment. */
static void record(enum function function, const void *old, const void *result, uint64_t size, uint64_t alignment,
                   uint64_t begin)
{
    struct header *log = log_of_this_process();
    if (log == NULL)
        return;
    uint64_t slot = atomic_fetch_add(&log->count, 1);
    if (slot >= log->capacity)
        return; /* the reader sees count > capacity and refuses the log */
    uint32_t pid = log->pid;
    if (self.pid != pid) {
        self.tid = syscall(SYS_gettid);
        self.pid = pid;
    }
    struct record *record = (struct record *)(log + 1) + slot;
    record->thread = self.tid;
    record->old_address = (uintptr_t)old;
    record->result_address = (uintptr_t)result;
    record->size = size;
    record->alignment = alignment;
    record->begin = begin == NOT_LOGGED ? slot : begin;
    /* Last, so that a process killed here leaves an empty slot and not half a record. */
    atomic_store_explicit(&record->function, function, memory_order_release);
}

static uint64_t product(size_t count, size_t size)
{
    size_t bytes;
    return __builtin_mul_overflow(count, size, &bytes) ? UINT64_MAX : bytes;
}

void *malloc(size_t size)
{
    void *result = __libc_malloc(size);
    record(MALLOC, NULL, result, size, 0, NOT_LOGGED);
    return result;
}

void *calloc(size_t count, size_t size)
{
    void *result = __libc_calloc(count, size);
    record(CALLOC, NULL, result, product(count, size), 0, NOT_LOGGED);
    return result;
}

void *realloc(void *old, size_t size)
{
    uint64_t begin = claim_slot();
    void *result = __libc_realloc(old, size);
    record(REALLOC, old, result, size, 0, begin);
    return result;
}

void *reallocarray(void *old, size_t count, size_t size)
{
    uint64_t begin = claim_slot();
    void *result = NULL;
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes))
        errno = ENOMEM;
    else
        result = __libc_realloc(old, bytes);
    record(REALLOCARRAY, old, result, product(count, size), 0, begin);
    return result;
}

void free(void *old)
{
    record(FREE, old, NULL, 0, 0, NOT_LOGGED);
    __libc_free(old);
}

int posix_memalign(void **result, size_t alignment, size_t size)
{
    /* The same test as glibc's: a power of two times sizeof(void *). */
    size_t words = alignment / sizeof(void *);
    if (alignment % sizeof(void *) != 0 || words == 0 || (words & (words - 1)) != 0) {
        record(POSIX_MEMALIGN, NULL, NULL, size, alignment, NOT_LOGGED);
        return EINVAL;
    }
    void *block = __libc_memalign(alignment, size);
    record(POSIX_MEMALIGN, NULL, block, size, alignment, NOT_LOGGED);
    if (block == NULL)
        return ENOMEM;
    *result = block;
    return 0;
}

/* In glibc before 2.38 aligned_alloc is memalign by another name. */
void *aligned_alloc(size_t alignment, size_t size)
{
    void *result = __libc_memalign(alignment, size);
    record(ALIGNED_ALLOC, NULL, result, size, alignment, NOT_LOGGED);
    return result;
}

void *memalign(size_t alignment, size_t size)
{
    void *result = __libc_memalign(alignment, size);
    record(MEMALIGN, NULL, result, size, alignment, NOT_LOGGED);
    return result;
}

void *valloc(size_t size)
{
    void *result = __libc_valloc(size);
    record(VALLOC, NULL, result, size, 0, NOT_LOGGED);
    return result;
}

void *pvalloc(size_t size)
{
    void *result = __libc_pvalloc(size);
    record(PVALLOC, NULL, result, size, 0, NOT_LOGGED);
    return result;
}
