/* A microphone without hardware: an ALSA capture device that plays a raw mono file in a loop, in real time.
 *
 *     pcm.NAME { type rtfile  file PATH  control PATH  rate 48000  format s16  channels "1 4"  speaker 48000 }
 *
 * Like a raw `hw:` device it knows one rate, one format (`s16` or `float`, what the file holds) and the channels from the first
 * number to the second, all of which hear the same. With a `speaker` it can be opened for playback too, at that rate alone.
 *
 * What the control file says is what happens now:
 *
 *     stall     the clock stops: no sound comes, and nothing says so
 *     silence   zeros come
 *     unplug    polling fails with ENODEV, and so does opening
 *     poll      polling ends at once with an error but nothing else does: who polls turns in circles. Opening fails with ENODEV
 *     yank      as a USB microphone goes: an overrun, and every restart fails. PortAudio never leaves its recovery from it
 *     hang      as stall, but who stops, closes or opens it never comes back
 *     busy      it cannot be opened: EBUSY. Who has it open goes on
 *     overflow  nobody is woken while the sound goes on: when this ends, more is lost than the buffer holds
 *
 * Anything else, or no file at all, plays.
 */
#define PIC 1 /* alsa-lib: this is a shared object */
#include <alsa/asoundlib.h>
#include <alsa/pcm_external.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/stat.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

enum mode { PLAY, STALL, SILENCE, UNPLUG, POLL, YANK, HANG, BUSY, OVERFLOW };
static const char *const words[] = {"play", "stall", "silence", "unplug", "poll", "yank", "hang", "busy", "overflow"};

struct microphone {
    snd_pcm_ioplug_t io;
    char *control;
    char *sound;
    size_t width;     /* bytes a sample */
    size_t length;    /* samples in the file */
    size_t next;      /* the one that is played next */
    int64_t first_ns; /* when sample 0 of the file was due; moved on by stalls */
    int64_t start_ns; /* when sample 0 of this run was due; moved on by stalls */
    int64_t stall_ns; /* when the present stall began, 0 for none */
    int64_t given;    /* samples handed over in this run */
    int timer;        /* wakes the reader twice a period */
};

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static enum mode mode_of(const struct microphone *mic) {
    char said[16] = "";
    int file = mic->control ? open(mic->control, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return PLAY;
    if (read(file, said, sizeof said - 1) < 0)
        said[0] = 0;
    close(file);
    said[strcspn(said, "\n")] = 0;
    for (enum mode mode = PLAY; mode <= OVERFLOW; mode++)
        if (!strcmp(said, words[mode]))
            return mode;
    return PLAY;
}

/* Whether there is nothing to open or start. */
static int gone(enum mode what) {
    return what == UNPLUG || what == POLL || what == YANK;
}

/* Whether the clock stops. Of what is gone only polling tells. */
static int stands_still(enum mode what) {
    return what == STALL || what == HANG || gone(what);
}

static void hang_if_told(const struct microphone *mic) {
    if (mode_of(mic) == HANG)
        for (;;)
            pause();
}

static int mic_prepare(snd_pcm_ioplug_t *io) {
    struct microphone *mic = io->private_data;
    if (gone(mode_of(mic)))
        return -ENODEV;
    int64_t half_ns = INT64_C(500000000) * io->period_size / io->rate;
    struct timespec tick = {half_ns / 1000000000, half_ns % 1000000000};
    return timerfd_settime(mic->timer, 0, &(struct itimerspec){tick, tick}, NULL) ? -errno : 0;
}

/* The sound goes on where the clock is: what came between two runs is lost. */
static int mic_start(snd_pcm_ioplug_t *io) {
    struct microphone *mic = io->private_data;
    enum mode what = mode_of(mic);
    if (gone(what))
        return -ENODEV;
    mic->start_ns = now_ns();
    if (!mic->first_ns)
        mic->first_ns = mic->start_ns;
    mic->next = (mic->start_ns - mic->first_ns) * io->rate / 1000000000 % mic->length;
    mic->stall_ns = stands_still(what) ? mic->start_ns : 0;
    mic->given = 0;
    return 0;
}

static int mic_stop(snd_pcm_ioplug_t *io) {
    hang_if_told(io->private_data);
    return 0;
}

/* Where the hardware would be writing now: samples since the start, modulo the buffer. */
static snd_pcm_sframes_t mic_pointer(snd_pcm_ioplug_t *io) {
    struct microphone *mic = io->private_data;
    enum mode what = mode_of(mic);
    if (what == YANK)
        return -EPIPE;
    int64_t now = now_ns();
    if (stands_still(what) && !mic->stall_ns)
        mic->stall_ns = now;
    if (!stands_still(what) && mic->stall_ns) {
        mic->first_ns += now - mic->stall_ns;
        mic->start_ns += now - mic->stall_ns;
        mic->stall_ns = 0;
    }
    int64_t heard = ((mic->stall_ns ? mic->stall_ns : now) - mic->start_ns) * io->rate / 1000000000;
    if (heard - mic->given > (int64_t)io->buffer_size)
        return -EPIPE; /* overrun: nobody read in time */
    return heard % io->buffer_size;
}

static snd_pcm_sframes_t mic_transfer(snd_pcm_ioplug_t *io, const snd_pcm_channel_area_t *areas, snd_pcm_uframes_t offset,
                                      snd_pcm_uframes_t size) {
    struct microphone *mic = io->private_data;
    int silent = mode_of(mic) == SILENCE;
    for (unsigned channel = 0; channel < io->channels; channel++) {
        size_t step = areas[channel].step / 8;
        char *to = (char *)areas[channel].addr + areas[channel].first / 8 + offset * step;
        for (snd_pcm_uframes_t i = 0; i < size; i++, to += step)
            if (silent)
                memset(to, 0, mic->width);
            else
                memcpy(to, mic->sound + (mic->next + i) % mic->length * mic->width, mic->width);
    }
    mic->next = (mic->next + size) % mic->length;
    mic->given += size;
    return size;
}

static int mic_revents(snd_pcm_ioplug_t *io, struct pollfd *polled, unsigned count, unsigned short *revents) {
    struct microphone *mic = io->private_data;
    enum mode what = mode_of(mic);
    uint64_t ticks;
    (void)count;
    *revents = 0;
    if (what == UNPLUG) {
        *revents = POLLERR | POLLHUP;
        snd_pcm_ioplug_set_state(io, SND_PCM_STATE_DISCONNECTED);
        return -ENODEV;
    }
    if (what == POLL) {
        *revents = POLLERR; /* and the timer is not read: the next poll ends at once */
        return 0;
    }
    if (!(polled[0].revents & POLLIN) || read(mic->timer, &ticks, sizeof ticks) < 0 || what == OVERFLOW)
        return 0;
    snd_pcm_sframes_t available = snd_pcm_avail_update(io->pcm);
    snd_pcm_uframes_t wanted = io->period_size;
    snd_pcm_sw_params_t *params;
    snd_pcm_sw_params_alloca(&params);
    if (!snd_pcm_sw_params_current(io->pcm, params))
        snd_pcm_sw_params_get_avail_min(params, &wanted);
    if (available < 0)
        *revents = POLLERR;
    else if ((snd_pcm_uframes_t)available >= wanted)
        *revents = POLLIN;
    return 0;
}

static void let_go(struct microphone *mic) {
    if (mic->timer >= 0)
        close(mic->timer);
    free(mic->sound);
    free(mic->control);
    free(mic);
}

static int mic_close(snd_pcm_ioplug_t *io) {
    hang_if_told(io->private_data);
    let_go(io->private_data);
    return 0;
}

static const snd_pcm_ioplug_callback_t callbacks = {
    .start = mic_start,
    .stop = mic_stop,
    .pointer = mic_pointer,
    .transfer = mic_transfer,
    .prepare = mic_prepare,
    .poll_revents = mic_revents,
    .close = mic_close,
};

/* Whether it can be opened now; it hangs here when told to. */
static int openable(const struct microphone *mic) {
    hang_if_told(mic);
    enum mode what = mode_of(mic);
    return gone(what) ? -ENODEV : what == BUSY ? -EBUSY : 0;
}

static int load(struct microphone *mic, const char *path) {
    struct stat facts;
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0 || fstat(file, &facts) || facts.st_size < (off_t)mic->width) {
        if (file >= 0)
            close(file);
        return -EINVAL;
    }
    mic->length = facts.st_size / mic->width;
    mic->sound = malloc(facts.st_size);
    int whole = mic->sound && read(file, mic->sound, facts.st_size) == facts.st_size;
    close(file);
    return whole ? 0 : -EIO;
}

/* What a program may ask of this device. */
static int constrain(snd_pcm_ioplug_t *io, size_t width, unsigned rate, unsigned fewest, unsigned most) {
    static const unsigned access[] = {SND_PCM_ACCESS_MMAP_INTERLEAVED, SND_PCM_ACCESS_RW_INTERLEAVED};
    const unsigned format[] = {width == 2 ? SND_PCM_FORMAT_S16_LE : SND_PCM_FORMAT_FLOAT_LE};
    int error = snd_pcm_ioplug_set_param_list(io, SND_PCM_IOPLUG_HW_ACCESS, 2, access);
    error = error ? error : snd_pcm_ioplug_set_param_list(io, SND_PCM_IOPLUG_HW_FORMAT, 1, format);
    error = error ? error : snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_CHANNELS, fewest, most);
    error = error ? error : snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_RATE, rate, rate);
    error = error ? error : snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_PERIOD_BYTES, 64, 1 << 17);
    error = error ? error : snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_BUFFER_BYTES, 256, 1 << 20);
    return error ? error : snd_pcm_ioplug_set_param_minmax(io, SND_PCM_IOPLUG_HW_PERIODS, 2, 1024);
}

SND_PCM_PLUGIN_DEFINE_FUNC(rtfile) {
    const char *path = NULL, *control = NULL, *format = "s16", *channels = "1 4";
    long rate = 48000, speaker = 0;
    unsigned fewest = 1, most = 1;
    snd_config_iterator_t at, next;
    (void)root;
    snd_config_for_each(at, next, conf) {
        snd_config_t *entry = snd_config_iterator_entry(at);
        const char *key;
        if (snd_config_get_id(entry, &key) < 0)
            continue;
        if (!strcmp(key, "file"))
            snd_config_get_string(entry, &path);
        else if (!strcmp(key, "control"))
            snd_config_get_string(entry, &control);
        else if (!strcmp(key, "format"))
            snd_config_get_string(entry, &format);
        else if (!strcmp(key, "channels"))
            snd_config_get_string(entry, &channels);
        else if (!strcmp(key, "rate"))
            snd_config_get_integer(entry, &rate);
        else if (!strcmp(key, "speaker"))
            snd_config_get_integer(entry, &speaker);
    }
    if ((stream != SND_PCM_STREAM_CAPTURE && !speaker) || sscanf(channels, "%u %u", &fewest, &most) != 2)
        return -EINVAL;
    struct microphone *mic = calloc(1, sizeof *mic);
    if (!mic)
        return -ENOMEM;
    mic->timer = -1;
    mic->control = control ? strdup(control) : NULL;
    mic->width = strcmp(format, "float") ? sizeof(int16_t) : sizeof(float);
    int error = openable(mic);
    error = error ? error : load(mic, path);
    if (error) {
        let_go(mic);
        return error;
    }
    mic->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    mic->io = (snd_pcm_ioplug_t){
        .version = SND_PCM_IOPLUG_VERSION,
        .name = "a file, in real time",
        .callback = &callbacks,
        .private_data = mic,
        .poll_fd = mic->timer,
        .poll_events = POLLIN,
    };
    error = snd_pcm_ioplug_create(&mic->io, name, stream, mode);
    if (error < 0) {
        let_go(mic);
        return error;
    }
    error = constrain(&mic->io, mic->width, stream == SND_PCM_STREAM_CAPTURE ? rate : speaker, fewest, most);
    if (error < 0) {
        snd_pcm_ioplug_delete(&mic->io); /* calls mic_close */
        return error;
    }
    *pcmp = mic->io.pcm;
    return 0;
}

SND_PCM_PLUGIN_SYMBOL(rtfile);
