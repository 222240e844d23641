/* Faults at the boundary between a process and the kernel, for the tests in this folder.

   Preloaded (LD_PRELOAD), it sees every call that changes a file below one folder: those of the
   store's own modules and those of LMDB. It does nothing until `shim_arm` is called, so a process
   can prepare a store, arm it, and go on. One counter numbers the operations of all threads.

   What it cannot see: stores through memory maps (LMDB runs without MDB_WRITEMAP; only its lock file,
   which holds nothing durable, is written that way) and io_uring (nobody here uses it). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OFF = 0, COUNT = 1, KILL = 2, ERROR = 3, SHORT = 4, LIE = 5, STOP = 6 };
#define PATH_BYTES 4096

static int mode, error_number, log_fd = -1;
static long count, first, last;
static char root[PATH_BYTES];
static size_t root_length;

static ssize_t (*r_write)(int, const void *, size_t);
static ssize_t (*r_pwrite)(int, const void *, size_t, off64_t);
static ssize_t (*r_writev)(int, const struct iovec *, int);
static ssize_t (*r_pwritev2)(int, const struct iovec *, int, off64_t, int);
static int (*r_fsync)(int);
static int (*r_fdatasync)(int);
static int (*r_ftruncate)(int, off64_t);
static int (*r_fallocate)(int, int, off64_t, off64_t);
static int (*r_posix_fallocate)(int, off64_t, off64_t);
static int (*r_rename)(const char *, const char *);
static int (*r_unlink)(const char *);
static int (*r_mkdir)(const char *, mode_t);
static int (*r_open)(const char *, int, ...);
static int (*r_openat)(int, const char *, int, ...);

__attribute__((constructor)) static void find_real_calls(void) {
    r_write = dlsym(RTLD_NEXT, "write");
    r_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    r_writev = dlsym(RTLD_NEXT, "writev");
    r_pwritev2 = dlsym(RTLD_NEXT, "pwritev64v2");
    r_fsync = dlsym(RTLD_NEXT, "fsync");
    r_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    r_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    r_fallocate = dlsym(RTLD_NEXT, "fallocate64");
    r_posix_fallocate = dlsym(RTLD_NEXT, "posix_fallocate64");
    r_rename = dlsym(RTLD_NEXT, "rename");
    r_unlink = dlsym(RTLD_NEXT, "unlink");
    r_mkdir = dlsym(RTLD_NEXT, "mkdir");
    r_open = dlsym(RTLD_NEXT, "open64");
    r_openat = dlsym(RTLD_NEXT, "openat64");
}

/* ---- what the tests call */

/* Begin: operations `from` to `to` (1 is the next one) below `folder` meet the fault `kind`.
   With `log_path`, every operation is written there as well, with its data. */
void shim_arm(const char *folder, int kind, long from, long to, int number, const char *log_path) {
    snprintf(root, sizeof root, "%s", folder);
    root_length = strlen(root);
    count = 0, first = from, last = to, error_number = number;
    log_fd = *log_path ? r_open(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    mode = kind;
}

void shim_disarm(void) { mode = OFF; }

long shim_count(void) { return count; }

/* ---- helpers */

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;

static void record(const char *op, const char *path, const char *other, long long offset,
                   const void *data, size_t length) {
    char head[2 * PATH_BYTES + 128];
    if (log_fd < 0) return;
    int n = snprintf(head, sizeof head, "%s\t%s\t%s\t%lld\t%zu\n", op, path, other, offset, length);
    r_write(log_fd, head, (size_t)n);
    if (length) r_write(log_fd, data, length);
}

/* Put a word of the test between the operations of the log. */
void shim_note(const char *text) {
    pthread_mutex_lock(&order);
    record("note", text, "", 0, NULL, 0);
    pthread_mutex_unlock(&order);
}

static int below(const char *path) {
    return mode != OFF && strncmp(path, root, root_length) == 0 &&
           (path[root_length] == '/' || path[root_length] == 0);
}

/* The folder that holds ours: its flush makes our own name durable. */
static int is_parent(const char *path) {
    size_t n = strlen(path);
    return mode != OFF && n < root_length && strncmp(path, root, n) == 0 && root[n] == '/' &&
           strchr(root + n + 1, '/') == NULL;
}

static int path_of(int fd, char *out) {
    char link[64];
    if (mode == OFF) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, PATH_BYTES - 1);
    if (n < 0) return 0;
    out[n] = 0;
    return below(out);
}

/* Count an operation: 1 if the fault is due, with kills carried out here. */
static int due(const char *name) {
    long now = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
    record("op", name, "", now, NULL, 0);
    if (mode == COUNT || now < first || now > last) return 0;
    if (mode == KILL) raise(SIGKILL);
    if (mode == STOP) raise(SIGSTOP);
    return 1;
}

static int fails(const char *name) {
    if (!due(name) || mode != ERROR) return 0;
    errno = error_number;
    return 1;
}

/* ---- writes since the last flush, so that a flush that lies can lose them */

typedef struct extent {
    struct extent *next;
    ino_t inode;
    off64_t offset;
    size_t length;
    char old[];
} extent;
static extent *dirty;

static void remember(int fd, off64_t offset, size_t length) {
    struct stat facts;
    if (mode != LIE || fstat(fd, &facts) != 0) return;
    extent *e = calloc(1, sizeof *e + length);
    if (e == NULL) return;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int reading = r_open(link, O_RDONLY | O_CLOEXEC);
    if (reading >= 0) {
        ssize_t got = pread(reading, e->old, length, offset);
        (void)got;
        close(reading);
    }
    e->inode = facts.st_ino, e->offset = offset, e->length = length, e->next = dirty, dirty = e;
}

static void flushed(int fd, int lose) {
    struct stat facts;
    if (mode != LIE || fstat(fd, &facts) != 0) return;
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int writing = lose ? r_open(link, O_WRONLY | O_CLOEXEC) : -1;
    for (extent **at = &dirty; *at;) {
        extent *e = *at;
        if (e->inode != facts.st_ino) {
            at = &e->next;
            continue;
        }
        if (writing >= 0) r_pwrite(writing, e->old, e->length, e->offset);
        *at = e->next;
        free(e);
    }
    if (writing >= 0) close(writing);
}

/* ---- the calls */

static ssize_t write_some(int fd, const void *data, size_t length, off64_t offset, int at) {
    char path[PATH_BYTES];
    if (!path_of(fd, path)) return at ? r_pwrite(fd, data, length, offset) : r_write(fd, data, length);
    pthread_mutex_lock(&order);
    ssize_t done = -1;
    int hit = due("write");
    if (hit && mode == ERROR) {
        errno = error_number;
    } else {
        if (hit && mode == SHORT && length > 1) length /= 2;
        int flags = fcntl(fd, F_GETFL);
        if (!at) offset = lseek64(fd, 0, (flags & O_APPEND) ? SEEK_END : SEEK_CUR);
        remember(fd, offset, length);
        done = at ? r_pwrite(fd, data, length, offset) : r_write(fd, data, length);
        if (done > 0)
            record((flags & O_DSYNC) ? "wsync" : "write", path, "", offset, data, (size_t)done);
        if (flags & O_DSYNC) flushed(fd, 0);
    }
    pthread_mutex_unlock(&order);
    return done;
}

static ssize_t write_vector(int fd, const struct iovec *v, int n, off64_t offset, int at) {
    size_t total = 0;
    for (int i = 0; i < n; i++) total += v[i].iov_len;
    char *all = malloc(total ? total : 1), *p = all;
    if (all == NULL) return -1;
    for (int i = 0; i < n; i++) p = (char *)memcpy(p, v[i].iov_base, v[i].iov_len) + v[i].iov_len;
    ssize_t done = write_some(fd, all, total, offset, at);
    free(all);
    return done;
}

ssize_t write(int fd, const void *d, size_t n) { return write_some(fd, d, n, 0, 0); }
ssize_t pwrite64(int fd, const void *d, size_t n, off64_t o) { return write_some(fd, d, n, o, 1); }
ssize_t pwrite(int fd, const void *d, size_t n, off_t o) { return write_some(fd, d, n, o, 1); }
ssize_t writev(int fd, const struct iovec *v, int n) {
    char path[PATH_BYTES];
    return path_of(fd, path) ? write_vector(fd, v, n, 0, 0) : r_writev(fd, v, n);
}
ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t o, int flags) {
    char path[PATH_BYTES];
    return path_of(fd, path) ? write_vector(fd, v, n, o, 1) : r_pwritev2(fd, v, n, o, flags);
}
ssize_t pwritev64(int fd, const struct iovec *v, int n, off64_t o) { return pwritev64v2(fd, v, n, o, 0); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t o) { return pwritev64v2(fd, v, n, o, 0); }

static int flush(int fd, int (*real)(int)) {
    char path[PATH_BYTES] = "";
    if (!path_of(fd, path) && !is_parent(path)) return real(fd);
    pthread_mutex_lock(&order);
    int status = -1, hit = due("sync");
    if (hit && (mode == ERROR || mode == LIE)) {
        errno = mode == LIE ? EIO : error_number;
        int kept = errno;
        flushed(fd, 1);
        errno = kept;
    } else if ((status = real(fd)) == 0) {
        record("sync", path, "", 0, NULL, 0);
        flushed(fd, 0);
    }
    pthread_mutex_unlock(&order);
    return status;
}
int fsync(int fd) { return flush(fd, r_fsync); }
int fdatasync(int fd) { return flush(fd, r_fdatasync); }

int ftruncate64(int fd, off64_t n) {
    char path[PATH_BYTES];
    if (!path_of(fd, path)) return r_ftruncate(fd, n);
    pthread_mutex_lock(&order);
    int status = fails("size") ? -1 : r_ftruncate(fd, n);
    if (status == 0) record("size", path, "", n, NULL, 0);
    pthread_mutex_unlock(&order);
    return status;
}
int ftruncate(int fd, off_t n) { return ftruncate64(fd, n); }

/* Reserving with FALLOC_FL_KEEP_SIZE changes nothing that a reader sees, so it is not logged. */
int fallocate64(int fd, int how, off64_t o, off64_t n) {
    char path[PATH_BYTES];
    if (path_of(fd, path) && fails("reserve")) return -1;
    return r_fallocate(fd, how, o, n);
}
int fallocate(int fd, int how, off_t o, off_t n) { return fallocate64(fd, how, o, n); }

int posix_fallocate64(int fd, off64_t o, off64_t n) {
    char path[PATH_BYTES];
    if (!path_of(fd, path)) return r_posix_fallocate(fd, o, n);
    if (fails("reserve")) return error_number;
    int status = r_posix_fallocate(fd, o, n);
    if (status == 0) record("size", path, "", o + n, NULL, 0);
    return status;
}
int posix_fallocate(int fd, off_t o, off_t n) { return posix_fallocate64(fd, o, n); }

static const char *absolute(const char *path, char *out) {
    char here[PATH_BYTES / 2];
    if (path[0] == '/' || getcwd(here, sizeof here) == NULL) return path;
    snprintf(out, PATH_BYTES, "%s/%s", here, path);
    return out;
}

int rename(const char *a, const char *b) {
    char x[PATH_BYTES], y[PATH_BYTES];
    const char *from = absolute(a, x), *to = absolute(b, y);
    if (!below(to)) return r_rename(a, b);
    pthread_mutex_lock(&order);
    int status = fails("rename") ? -1 : r_rename(a, b);
    if (status == 0) record("rename", from, to, 0, NULL, 0);
    pthread_mutex_unlock(&order);
    return status;
}

int unlink(const char *a) {
    char x[PATH_BYTES];
    const char *path = absolute(a, x);
    if (!below(path)) return r_unlink(a);
    pthread_mutex_lock(&order);
    int status = fails("unlink") ? -1 : r_unlink(a);
    if (status == 0) record("unlink", path, "", 0, NULL, 0);
    pthread_mutex_unlock(&order);
    return status;
}

int mkdir(const char *a, mode_t m) {
    char x[PATH_BYTES];
    const char *path = absolute(a, x);
    if (!below(path)) return r_mkdir(a, m);
    pthread_mutex_lock(&order);
    int status = fails("mkdir") ? -1 : r_mkdir(a, m);
    if (status == 0) record("mkdir", path, "", 0, NULL, 0);
    pthread_mutex_unlock(&order);
    return status;
}

static int open_file(int folder, const char *a, int flags, mode_t m) {
    char x[PATH_BYTES];
    const char *path = absolute(a, x);
    struct stat facts;
    if (folder != AT_FDCWD && a[0] != '/') return r_openat(folder, a, flags, m);
    if (!below(path)) return r_open(a, flags, m);
    pthread_mutex_lock(&order);
    int existed = stat(path, &facts) == 0, fd = -1;
    if (!fails("open")) {
        fd = r_open(a, flags, m);
        if (fd >= 0 && (flags & O_CREAT) && !existed) record("create", path, "", 0, NULL, 0);
        if (fd >= 0 && (flags & O_TRUNC) && existed) record("size", path, "", 0, NULL, 0);
    }
    pthread_mutex_unlock(&order);
    return fd;
}

#define MODE_ARGUMENT                   \
    mode_t m = 0;                       \
    if (flags & (O_CREAT | O_TMPFILE)) { \
        va_list v;                      \
        va_start(v, flags);             \
        m = va_arg(v, mode_t);          \
        va_end(v);                      \
    }
int open(const char *a, int flags, ...) { MODE_ARGUMENT return open_file(AT_FDCWD, a, flags, m); }
int open64(const char *a, int flags, ...) { MODE_ARGUMENT return open_file(AT_FDCWD, a, flags, m); }
int openat(int f, const char *a, int flags, ...) { MODE_ARGUMENT return open_file(f, a, flags, m); }
int openat64(int f, const char *a, int flags, ...) { MODE_ARGUMENT return open_file(f, a, flags, m); }
