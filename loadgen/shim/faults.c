/* Faults of the machine under one real process, by LD_PRELOAD: a disk that
 * fills or fails, a wall clock that steps. A drill or a test writes the plan below
 * into a file, which is mapped here: a change counts from the next call on.
 *
 * Only files under PAYSWITCH_FAULT_DIR are touched. A process that was started
 * with this library and cannot read its plan ends at once: a drill must
 * never run without its faults. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

/* Words of the plan, as src/cluster/shim.rs and tests/src/faults.rs write them. */
struct plan {
    int64_t clock_offset_ns; /* added to CLOCK_REALTIME */
    int64_t capacity;        /* bytes of the directory's file system; 0: the real one */
    int64_t write_errno;     /* of writes and syncs; 0: they work */
    int64_t write_mode;      /* what a failing write still does: 0 nothing, 1 all, 2 half;
                                3: writes work, syncs fail */
    int64_t struck;          /* calls that were failed, counted here */
    int64_t loaded;          /* set to 1 here */
    int64_t shifted;         /* readings of the clock that were off, counted here */
};

static struct plan *plan;
static char dir[PATH_MAX];
static size_t dir_len;

static void die(const char *what) {
    fprintf(stderr, "fault shim: %s\n", what);
    _exit(99);
}

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) die(name);
    return found;
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("PAYSWITCH_FAULT_PLAN");
    const char *target = getenv("PAYSWITCH_FAULT_DIR");
    if (!path || !target || strlen(target) >= sizeof dir) die("no plan or no directory");
    int fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0) die("the plan does not open");
    void *mapped = mmap(NULL, sizeof *plan, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (mapped == MAP_FAILED) die("the plan cannot be mapped");
    close(fd);
    strcpy(dir, target);
    dir_len = strlen(dir);
    plan = mapped;
    __atomic_store_n(&plan->loaded, 1, __ATOMIC_SEQ_CST);
}

static int64_t word(const int64_t *at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }

static int below(const char *path) {
    return strncmp(path, dir, dir_len) == 0 && (path[dir_len] == '/' || path[dir_len] == 0);
}

static int is_target(int fd) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t len = readlink(link, path, sizeof path - 1);
    if (len < 0) return 0;
    path[len] = 0;
    return below(path);
}

static int fail(int code) {
    __atomic_add_fetch(&plan->struck, 1, __ATOMIC_SEQ_CST);
    errno = code;
    return -1;
}

/* Bytes left of the planned capacity; INT64_MAX without one. */
static int64_t room(void) {
    int64_t capacity = word(&plan->capacity);
    if (capacity == 0) return INT64_MAX;
    int64_t used = 0;
    DIR *open_dir = opendir(dir);
    if (!open_dir) return capacity;
    for (struct dirent *entry; (entry = readdir(open_dir));) {
        struct stat facts;
        if (fstatat(dirfd(open_dir), entry->d_name, &facts, 0) == 0 && S_ISREG(facts.st_mode))
            used += (int64_t)facts.st_blocks * 512;
    }
    closedir(open_dir);
    return capacity > used ? capacity - used : 0;
}

/* Whether the file system has no room for the file to reach `end`. */
static int overflows(int fd, int64_t end) {
    struct stat facts;
    if (word(&plan->capacity) == 0 || fstat(fd, &facts) != 0 || !is_target(fd)) return 0;
    int64_t grows = end - (int64_t)facts.st_blocks * 512;
    return grows > 0 && end > facts.st_size && grows > room();
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t at) {
    static ssize_t (*next)(int, const void *, size_t, off64_t);
    if (!next) next = real("pwrite64");
    if (!plan) return next(fd, bytes, count, at);
    int code = (int)word(&plan->write_errno);
    int64_t mode = word(&plan->write_mode);
    if (code != 0 && mode != 3 && is_target(fd)) {
        /* Half means half of the blocks: a torn write. */
        size_t done = mode == 1 ? count : mode == 2 ? count / 2 & ~(size_t)4095 : 0;
        if (done > 0 && next(fd, bytes, done, at) < 0) return -1;
        return fail(code);
    }
    if (overflows(fd, (int64_t)at + (int64_t)count)) return fail(ENOSPC);
    return next(fd, bytes, count, at);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t at) {
    return pwrite64(fd, bytes, count, at);
}

static int sync_or_fail(const char *name, int fd) {
    int code = plan ? (int)word(&plan->write_errno) : 0;
    if (code != 0 && is_target(fd)) return fail(code);
    return ((int (*)(int))real(name))(fd);
}

int fsync(int fd) { return sync_or_fail("fsync", fd); }

int fdatasync(int fd) { return sync_or_fail("fdatasync", fd); }

int fallocate64(int fd, int mode, off64_t from, off64_t len) {
    static int (*next)(int, int, off64_t, off64_t);
    if (!next) next = real("fallocate64");
    if (plan && overflows(fd, from + len)) return fail(ENOSPC);
    return next(fd, mode, from, len);
}

int fallocate(int fd, int mode, off_t from, off_t len) { return fallocate64(fd, mode, from, len); }

int statvfs64(const char *path, struct statvfs64 *facts) {
    static int (*next)(const char *, struct statvfs64 *);
    if (!next) next = real("statvfs64");
    int result = next(path, facts);
    if (result == 0 && plan && word(&plan->capacity) != 0 && below(path))
        facts->f_bavail = (fsblkcnt64_t)room() / facts->f_frsize;
    return result;
}

int statvfs(const char *path, struct statvfs *facts) {
    /* One layout on 64-bit glibc. */
    _Static_assert(sizeof(struct statvfs) == sizeof(struct statvfs64), "64-bit only");
    return statvfs64(path, (struct statvfs64 *)facts);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*next)(clockid_t, struct timespec *);
    if (!next) next = real("clock_gettime");
    int result = next(clock, now);
    if (result != 0 || !plan || clock != CLOCK_REALTIME) return result;
    int64_t offset = word(&plan->clock_offset_ns);
    if (offset == 0) return result;
    __atomic_add_fetch(&plan->shifted, 1, __ATOMIC_SEQ_CST);
    int64_t ns = (int64_t)now->tv_sec * 1000000000 + now->tv_nsec + offset;
    now->tv_sec = ns / 1000000000;
    now->tv_nsec = ns % 1000000000;
    return 0;
}
