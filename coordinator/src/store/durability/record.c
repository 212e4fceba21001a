/*
 * Records what a process does to the files of one folder, in the order in which it is done.
 *
 * Preloaded into the process that writes a store. One lock is held over each call and its record, so
 * that the order in the record is the order of the calls. `power.rs` reads the record; a call that
 * is missing here makes its comparison with the real folder fail.
 *
 * MUSTER_RECORD_FOLDER  the folder, as an absolute path
 * MUSTER_RECORD_TO      the file that the records are appended to
 * MUSTER_RECORD_EIO     the number of the first fdatasync of such a file that fails, as all do behind
 *                       it; none fails without
 *
 * A record: kind (1 byte), inode (8), offset or length (8), length of the path (4) and of the data
 * (4), path, data. Numbers are little-endian.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MAX_FDS 4096

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static const char *folder;
static int to = -1;
/* Calls of fdatasync that are left until they fail; negative where they never do. */
static long until_eio = -1;
/* The path below the folder of each open file; NULL for all others. */
static char *paths[MAX_FDS];

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("MUSTER_RECORD_TO");
    const char *eio = getenv("MUSTER_RECORD_EIO");
    folder = getenv("MUSTER_RECORD_FOLDER");
    until_eio = eio ? atol(eio) : -1;
    if (path && folder)
        to = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
}

/* Nothing is done behind the last record. */
__attribute__((destructor)) static void end(void) { pthread_mutex_lock(&lock); }

static void put(const void *bytes, size_t length) {
    const char *at = bytes;
    while (length > 0) {
        long n = syscall(SYS_write, to, at, length);
        if (n <= 0)
            _exit(97);
        at += n;
        length -= n;
    }
}

static void record(char kind, uint64_t inode, uint64_t number, const char *path, const void *data,
                   uint32_t num_data) {
    uint32_t num_path = strlen(path);
    char head[25];
    head[0] = kind;
    memcpy(head + 1, &inode, 8);
    memcpy(head + 9, &number, 8);
    memcpy(head + 17, &num_path, 4);
    memcpy(head + 21, &num_data, 4);
    put(head, sizeof head);
    put(path, num_path);
    put(data, num_data);
}

/* The path below the folder, or NULL. */
static const char *below(const char *path) {
    size_t length;
    if (to < 0 || !path)
        return NULL;
    length = strlen(folder);
    if (strncmp(path, folder, length) != 0)
        return NULL;
    if (path[length] == 0)
        return path + length;
    return path[length] == '/' ? path + length + 1 : NULL;
}

static const char *path_of(int fd) { return fd >= 0 && fd < MAX_FDS ? paths[fd] : NULL; }

static uint64_t inode_of(int fd) {
    struct stat found;
    return fstat(fd, &found) == 0 ? found.st_ino : 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int open_at(int at, const char *path, int flags, mode_t mode) {
    const char *name = below(path);
    if (!name)
        return syscall(SYS_openat, at, path, flags, mode);
    pthread_mutex_lock(&lock);
    int is_new = syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0;
    int fd = syscall(SYS_openat, at, path, flags, mode);
    int error = errno;
    if (fd >= 0 && fd < MAX_FDS) {
        free(paths[fd]);
        paths[fd] = strdup(name);
        if (is_new)
            record('c', inode_of(fd), 0, name, "", 0);
        else if (flags & O_TRUNC)
            record('t', inode_of(fd), 0, name, "", 0);
    }
    pthread_mutex_unlock(&lock);
    errno = error;
    return fd;
}

#define OPEN(name)                                                                                 \
    int name(const char *path, int flags, ...) {                                                   \
        va_list rest;                                                                              \
        va_start(rest, flags);                                                                     \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                    \
        va_end(rest);                                                                              \
        return open_at(AT_FDCWD, path, flags, mode);                                               \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    pthread_mutex_lock(&lock);
    if (path_of(fd)) {
        free(paths[fd]);
        paths[fd] = NULL;
    }
    int done = syscall(SYS_close, fd);
    pthread_mutex_unlock(&lock);
    return done;
}

ssize_t write(int fd, const void *data, size_t length) {
    const char *name = path_of(fd);
    if (to < 0 || (!name && fd != 1))
        return syscall(SYS_write, fd, data, length);
    pthread_mutex_lock(&lock);
    off_t at = name ? lseek(fd, 0, SEEK_CUR) : 0;
    ssize_t n = syscall(SYS_write, fd, data, length);
    int error = errno;
    if (n > 0 && name)
        record('w', inode_of(fd), at, name, data, n);
    else if (n > 0)
        record('x', 0, 0, "", data, n);
    pthread_mutex_unlock(&lock);
    errno = error;
    return n;
}

#define PWRITE(name)                                                                               \
    ssize_t name(int fd, const void *data, size_t length, off_t at) {                              \
        if (!path_of(fd))                                                                          \
            return syscall(SYS_pwrite64, fd, data, length, at);                                    \
        pthread_mutex_lock(&lock);                                                                 \
        ssize_t n = syscall(SYS_pwrite64, fd, data, length, at);                                   \
        int error = errno;                                                                         \
        if (n > 0)                                                                                 \
            record('w', inode_of(fd), at, path_of(fd), data, n);                                   \
        pthread_mutex_unlock(&lock);                                                               \
        errno = error;                                                                             \
        return n;                                                                                  \
    }
PWRITE(pwrite)
PWRITE(pwrite64)

#define TRUNCATE(name)                                                                             \
    int name(int fd, off_t length) {                                                               \
        pthread_mutex_lock(&lock);                                                                 \
        int done = syscall(SYS_ftruncate, fd, length);                                             \
        int error = errno;                                                                         \
        if (done == 0 && path_of(fd))                                                              \
            record('t', inode_of(fd), length, path_of(fd), "", 0);                                 \
        pthread_mutex_unlock(&lock);                                                               \
        errno = error;                                                                             \
        return done;                                                                               \
    }
TRUNCATE(ftruncate)
TRUNCATE(ftruncate64)

/* Only what makes a file longer is recorded; nothing else is used. */
#define ALLOCATE(name)                                                                             \
    int name(int fd, int mode, off_t at, off_t length) {                                           \
        pthread_mutex_lock(&lock);                                                                 \
        struct stat before, after;                                                                 \
        fstat(fd, &before);                                                                        \
        int done = syscall(SYS_fallocate, fd, mode, at, length);                                   \
        int error = errno;                                                                         \
        fstat(fd, &after);                                                                         \
        if (done == 0 && path_of(fd) && after.st_size > before.st_size)                            \
            record('t', inode_of(fd), after.st_size, path_of(fd), "", 0);                          \
        pthread_mutex_unlock(&lock);                                                               \
        errno = error;                                                                             \
        return done;                                                                               \
    }
ALLOCATE(fallocate)
ALLOCATE(fallocate64)

#define SYNC(name, kind)                                                                           \
    int name(int fd) {                                                                             \
        pthread_mutex_lock(&lock);                                                                 \
        int done = syscall(SYS_##name, fd);                                                        \
        int error = errno;                                                                         \
        if (done == 0 && path_of(fd))                                                              \
            record(kind, inode_of(fd), 0, path_of(fd), "", 0);                                     \
        pthread_mutex_unlock(&lock);                                                               \
        errno = error;                                                                             \
        return done;                                                                               \
    }
SYNC(fsync, 'f')

int fdatasync(int fd) {
    pthread_mutex_lock(&lock);
    int is_ours = path_of(fd) != NULL;
    if (is_ours && until_eio > 0)
        until_eio--;
    int fails = is_ours && until_eio == 0;
    int done = fails ? -1 : syscall(SYS_fdatasync, fd);
    int error = fails ? EIO : errno;
    if (done == 0 && is_ours)
        record('d', inode_of(fd), 0, path_of(fd), "", 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int rename(const char *from, const char *path) {
    pthread_mutex_lock(&lock);
    int done = REAL(rename)(from, path);
    int error = errno;
    if (done == 0 && below(from))
        record('r', 0, 0, below(from), below(path), strlen(below(path)));
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int unlink(const char *path) {
    pthread_mutex_lock(&lock);
    int done = REAL(unlink)(path);
    int error = errno;
    if (done == 0 && below(path))
        record('u', 0, 0, below(path), "", 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}

int mkdir(const char *path, mode_t mode) {
    pthread_mutex_lock(&lock);
    int done = REAL(mkdir)(path, mode);
    int error = errno;
    if (done == 0 && below(path))
        record('m', 0, 0, below(path), "", 0);
    pthread_mutex_unlock(&lock);
    errno = error;
    return done;
}
