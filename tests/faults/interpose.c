/* Preloaded, it makes the k-th of a process's calls on files below one folder fail with an error, or kills the process there. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static char below[4096], what[8192];
static long made, fail_at;
static int code; /* an errno; -1 kills */

void fault_arm(const char *folder, long k, int with) {
    snprintf(below, sizeof below, "%s", folder);
    made = 0, fail_at = k, code = with, what[0] = 0;
}
long fault_made(void) { return made; }
const char *fault_what(void) { return what; }

static int fails(const char *call, int folder, const char *path) {
    char place[4096] = "", link[64];
    if (!below[0]) return 0;
    if (folder != AT_FDCWD && (!path || path[0] != '/')) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
        ssize_t n = readlink(link, place, sizeof place - 1);
        place[n > 0 ? n : 0] = 0;
    } else if (path)
        snprintf(place, sizeof place, "%s", path);
    if (strncmp(place, below, strlen(below)) || ++made != fail_at) return 0;
    snprintf(what, sizeof what, "%s %s", call, place);
    if (code < 0) kill(getpid(), SIGKILL);
    errno = code;
    return 1;
}

#define ORIGINAL(name) ((__typeof__(name) *)dlsym(RTLD_NEXT, #name))
#define CALL(type, name, folder, path, parameters, ...)                                                                         \
    type name parameters { return fails(#name, folder, path) ? -1 : ORIGINAL(name)(__VA_ARGS__); }
#define OPEN(name, folder, parameters, ...)                                                                                     \
    int name parameters {                                                                                                       \
        va_list rest;                                                                                                           \
        va_start(rest, flags);                                                                                                  \
        int mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, int) : 0;                                                       \
        va_end(rest);                                                                                                           \
        return fails(#name, folder, path) ? -1 : ORIGINAL(name)(__VA_ARGS__, flags, mode);                                      \
    }

OPEN(open, AT_FDCWD, (const char *path, int flags, ...), path)
OPEN(open64, AT_FDCWD, (const char *path, int flags, ...), path)
OPEN(openat, at, (int at, const char *path, int flags, ...), at, path)
OPEN(openat64, at, (int at, const char *path, int flags, ...), at, path)
CALL(ssize_t, read, fd, NULL, (int fd, void *to, size_t n), fd, to, n)
CALL(ssize_t, write, fd, NULL, (int fd, const void *from, size_t n), fd, from, n)
CALL(int, fsync, fd, NULL, (int fd), fd)
CALL(int, flock, fd, NULL, (int fd, int how), fd, how)
CALL(int, ftruncate, fd, NULL, (int fd, off_t n), fd, n)
CALL(int, ftruncate64, fd, NULL, (int fd, off64_t n), fd, n)
CALL(int, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), path, mode)
CALL(int, rmdir, AT_FDCWD, path, (const char *path), path)
CALL(int, unlink, AT_FDCWD, path, (const char *path), path)
CALL(int, unlinkat, at, path, (int at, const char *path, int flags), at, path, flags)
CALL(int, link, AT_FDCWD, to, (const char *from, const char *to), from, to)
CALL(int, symlink, AT_FDCWD, to, (const char *from, const char *to), from, to)
CALL(int, rename, AT_FDCWD, to, (const char *from, const char *to), from, to)
CALL(int, renameat2, b, to, (int a, const char *from, int b, const char *to, unsigned flags), a, from, b, to, flags)
