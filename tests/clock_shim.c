/* A computer whose clock is set and that sleeps: preloaded, it moves what clock_gettime says.
 *
 * $CLOCK_SHIM names a file of two numbers in seconds: what is added to the time of day, and how long the computer has slept.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "clock_gettime");
    int error = real(clock, now);
    if (error || (clock != CLOCK_REALTIME && clock != CLOCK_BOOTTIME))
        return error;
    char text[64] = "";
    long set_s = 0, slept_s = 0;
    const char *path = getenv("CLOCK_SHIM");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file >= 0) {
        if (read(file, text, sizeof text - 1) > 0)
            sscanf(text, "%ld %ld", &set_s, &slept_s);
        close(file);
    }
    now->tv_sec += clock == CLOCK_REALTIME ? set_s + slept_s : slept_s;
    return 0;
}
