/* Counts the operations that change files below one folder, and fails or kills at one of them.
 *
 * Loaded by LD_PRELOAD. A process calls fault_arm; until then nothing is counted. A write that is killed or out of space
 * has written half of its bytes.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char folder[PATH_MAX];
static long at, count, length;
static int error_number, lasting; /* 0: kill */

void fault_arm(const char *path, long number, int code, int until_the_end) {
    at = number, count = 0, error_number = code, lasting = until_the_end;
    snprintf(folder, sizeof folder, "%s", path);
    length = (long)strlen(folder);
}

/* Kill this process when it has used so much CPU time. */
int fault_kill_after(long nanoseconds) {
    struct sigevent event;
    struct itimerspec when;
    timer_t timer;
    memset(&event, 0, sizeof event);
    memset(&when, 0, sizeof when);
    event.sigev_notify = SIGEV_SIGNAL;
    event.sigev_signo = SIGKILL;
    when.it_value.tv_sec = nanoseconds / 1000000000;
    when.it_value.tv_nsec = nanoseconds % 1000000000 + 1;
    return timer_create(CLOCK_PROCESS_CPUTIME_ID, &event, &timer) || timer_settime(timer, 0, &when, NULL);
}

long fault_count(void) { return count; }

static int below(const char *path) {
    char whole[PATH_MAX];
    if (!length || !path) return 0;
    if (path[0] == '/') return !strncmp(path, folder, length);
    if (!getcwd(whole, sizeof whole)) return 0;
    return !strncmp(whole, folder, length);
}

static int fd_below(int fd) {
    char link[64], path[PATH_MAX];
    if (!length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n <= 0) return 0;
    path[n] = 0;
    return below(path);
}

static int due(void) {
    ++count;
    return at && (count == at || (lasting && count > at));
}

/* What frees space also works on a full disk. */
static int due_if_not_full(void) { return due() && error_number != ENOSPC; }

static int strike(void) {
    if (!error_number) {
        kill(getpid(), SIGKILL);
        pause();
    }
    errno = error_number;
    return -1;
}

#define REAL(type, name, ...) \
    static type (*real)(__VA_ARGS__); \
    if (!real) real = (type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name)

#define OPEN(name, symbol) \
    int name(const char *path, int flags, ...) { \
        REAL(int, symbol, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (flags & (O_CREAT | O_TRUNC) && below(path) && due()) return strike(); \
        return real(path, flags, mode); \
    }
OPEN(open, "open")
OPEN(open64, "open64")

#define OPENAT(name, symbol) \
    int name(int dir, const char *path, int flags, ...) { \
        REAL(int, symbol, int, const char *, int, ...); \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (flags & (O_CREAT | O_TRUNC) && below(path) && due()) return strike(); \
        return real(dir, path, flags, mode); \
    }
OPENAT(openat, "openat")
OPENAT(openat64, "openat64")

ssize_t write(int fd, const void *data, size_t size) {
    REAL(ssize_t, "write", int, const void *, size_t);
    if (fd > 2 && fd_below(fd) && due()) {
        if (error_number != EIO && count == at) real(fd, data, size / 2);
        return strike();
    }
    return real(fd, data, size);
}

#define PWRITE(name, symbol, offset_type) \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset) { \
        REAL(ssize_t, symbol, int, const void *, size_t, offset_type); \
        if (fd_below(fd) && due()) { \
            if (error_number != EIO && count == at) real(fd, data, size / 2, offset); \
            return strike(); \
        } \
        return real(fd, data, size, offset); \
    }
PWRITE(pwrite, "pwrite", off_t)
PWRITE(pwrite64, "pwrite64", off64_t)

ssize_t writev(int fd, const struct iovec *parts, int number) {
    REAL(ssize_t, "writev", int, const struct iovec *, int);
    if (fd_below(fd) && due()) return strike();
    return real(fd, parts, number);
}

#define ON_PATH(name) \
    int name(const char *path) { \
        REAL(int, #name, const char *); \
        if (below(path) && due_if_not_full()) return strike(); \
        return real(path); \
    }
ON_PATH(unlink)
ON_PATH(rmdir)

int mkdir(const char *path, mode_t mode) {
    REAL(int, "mkdir", const char *, mode_t);
    if (below(path) && due()) return strike();
    return real(path, mode);
}

int rename(const char *from, const char *to) {
    REAL(int, "rename", const char *, const char *);
    if (below(to) && due()) return strike();
    return real(from, to);
}

#define ON_FD(name) \
    int name(int fd) { \
        REAL(int, #name, int); \
        if (fd_below(fd) && due()) return strike(); \
        return real(fd); \
    }
ON_FD(fsync)
ON_FD(fdatasync)

#define TRUNCATE(name, offset_type) \
    int name(int fd, offset_type size) { \
        REAL(int, #name, int, offset_type); \
        if (fd_below(fd) && due_if_not_full()) return strike(); \
        return real(fd, size); \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)
