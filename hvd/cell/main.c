/* The cell's start: descriptors (enum hv_cell_fd), mappings, signals, timer, sandbox; then it waits for its first turn.
 *
 * hvd-cell          started by the runner (hvd/cell/process.py), with all signals blocked
 * hvd-cell --probe  does this host have what it takes (probe.c)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "breakpoint.h"
#include "cell.h"
#include "debug.h"
#include "mappings.h"
#include "paravirt.h"
#include "signals.h"
#include "sites.h"
#include "start.h"
#include "translate.h"

#define STACK_BYTES (256u << 10)

static const int handled[] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE, SIGSYS, SIGALRM, HV_CELL_KICK_SIGNAL};

/* The runner reads it once the process has ended (host.c). */
static _Noreturn void give_up(const char *format, ...)
{
    char text[sizeof cell.area->exit.detail];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (cell.area)
        memcpy(cell.area->exit.detail, text, sizeof text);
    else
        dprintf(STDERR_FILENO, "hvd-cell: %s\n", text);
    _exit(1);
}

static void *map(int fd, size_t size, const char *what)
{
    void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (at == MAP_FAILED)
        give_up("%s cannot be mapped: %s", what, strerror(errno));
    return at;
}

static void map_area(void)
{
    struct stat about;
    if (fstat(HV_CELL_FD_AREA, &about) != 0 || about.st_size < (off_t)sizeof(struct hv_cell_area))
        give_up("descriptor %d is no run area: this program is started by hvd's runner", HV_CELL_FD_AREA);
    struct hv_cell_area *area = map(HV_CELL_FD_AREA, sizeof *area, "the run area");
    if (area->magic != HV_AREA_MAGIC || area->version != HV_AREA_VERSION)
        give_up("the run area is of another version (%u): run `make native`", area->version);
    cell.area = area;
    cell.mode = area->mode;
    if (fstat(HV_CELL_FD_MEMORY, &about) != 0 || (uint64_t)about.st_size != area->memory_size)
        give_up("the memory file has another size than the run area says");
    cell.memory = map(HV_CELL_FD_MEMORY, area->memory_size, "the guest's memory");
}

/* A file of the guest's directory; anything else (tests have none) counts as none. */
static void *map_file(int fd, size_t *size)
{
    struct stat about;
    *size = 0;
    if (fstat(fd, &about) != 0 || !S_ISREG(about.st_mode) || !about.st_size)
        return NULL;
    *size = (size_t)about.st_size;
    return map(fd, *size, "a file of the guest's directory");
}

static void make_board(void)
{
    hv_board_init(&cell.board, HV_CELL_FD_CONSOLE, NULL, 0, NULL, 0, cell.area->backend);
    memcpy(cell.board.claimed, cell.area->claimed, sizeof cell.board.claimed);
    cell.board.console = &cell.area->console;
    cell.board.spaces = &cell.area->pci_spaces;
    cell.board.cmos = &cell.area->cmos;
    cell.board.vga = &cell.area->vga;
    cell.board.keyboard = &cell.area->keyboard;
    cell.board.acpi = &cell.area->acpi;
}

static void join_crossings(void)
{
    size_t counters_size, trace_size;
    void *counters = map_file(HV_CELL_FD_COUNTERS, &counters_size), *trace = map_file(HV_CELL_FD_TRACE, &trace_size);
    hv_crossings_join(&cell.board.crossings, counters, counters_size, trace, trace_size, cell.area->backend);
    hv_callstack_init();
}

/* Nothing of this process may lie where guest code can point: in the low 4 GiB and, with two views, in the kernel's window. */
static void reserve(uint64_t start, uint64_t end)
{
    void *at = mmap((void *)start, end - start, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (at != (void *)start)
        give_up("%#llx-%#llx cannot be reserved: %s", (unsigned long long)start, (unsigned long long)end, strerror(errno));
}

static unsigned long number_in(const char *path, unsigned long otherwise)
{
    char text[32] = "";
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return otherwise;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    return length > 0 ? strtoul(text, NULL, 10) : otherwise;
}

static void prepare_memory(void)
{
    /* Page 0 is the guest's, too, when the host lets it be mapped: by CAP_SYS_RAWIO, or vm.mmap_min_addr = 0. */
    unsigned long least = number_in("/proc/sys/vm/mmap_min_addr", 65536), mappings = number_in("/proc/sys/vm/max_map_count", 65530);
    void *first = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (first == NULL) {
        munmap(first, PAGE);
        least = 0;
    }
    least = (least + PAGE - 1) & ~(unsigned long)(PAGE - 1);
    if (cell.mode == HV_MODE_PARAVIRT && !hv_paravirt_init())
        give_up("no memory for the virtual processor's page: %s", strerror(errno));
    reserve(least, cell.mode == HV_MODE_PARAVIRT ? HV_PV_VCPU : HV_LOW_END);
    if (cell.mode == HV_MODE_REWRITING)
        reserve(HV_WINDOW, HV_WINDOW + HV_LOW_END);
    hv_shadow_init((uint32_t)least, (unsigned)mappings);
}

static void prepare_signals(void)
{
    uint8_t *stack = mmap(NULL, PAGE + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (stack == MAP_FAILED || mprotect(stack, PAGE, PROT_NONE) != 0)
        give_up("no memory for the signal stack: %s", strerror(errno));
    stack_t alternate = {.ss_sp = stack + PAGE, .ss_size = STACK_BYTES};
    struct sigaction action = {.sa_sigaction = hv_on_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    sigfillset(&action.sa_mask);
    bool failed = sigaltstack(&alternate, NULL) != 0 || !hv_int1_init();
    for (size_t i = 0; i < sizeof handled / sizeof *handled; i++)
        failed |= sigaction(handled[i], &action, NULL) != 0;
    failed |= !hv_timer_create();
    if (failed)
        give_up("signals or the timer cannot be set up: %s (the limit of timers is RLIMIT_SIGPENDING)", strerror(errno));
}

static void enter_sandbox(void)
{
    static struct hv_ahead ahead;
    struct hv_cell_word *word = NULL;
    int error;
    uint32_t done = 0;
    if (!cell.area->ahead) {
        join_crossings();
        done = hv_sandbox_enter();
    } else {
        if (!hv_sandbox_begin())
            give_up("no namespaces for a cell that is made ahead: %s", strerror(errno));
        if (cell.area->ahead == HV_AHEAD_OF_MUCH && cell.mode == HV_MODE_REWRITING)
            hv_blocks_ahead();
        if (!hv_ahead_wait(&ahead))
            _exit(0); /* the runner has another one, or has gone */
        join_crossings();
        if (!hv_sandbox_follow(ahead.word.user, ahead.network, ahead.mounts, &done))
            give_up("a cell that was made ahead cannot enter its jail: %s", strerror(errno));
        word = &ahead.word;
    }
    cell.area->sandbox = done;
    /* Behind that, since a change of credentials may clear it. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != (pid_t)cell.area->runner)
        give_up("the runner has gone");
    if (!hv_sandbox_close(cell.mode == HV_MODE_REWRITING, word, &error))
        give_up("seccomp: %s", strerror(error));
    cell.area->sandbox |= HV_SANDBOX_SECCOMP;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "--probe") == 0)
        return hv_probe();
    if (close_range(HV_CELL_FDS, ~0u, 0) != 0)
        give_up("descriptors cannot be closed: %s", strerror(errno));
    map_area();
    make_board();
    prepare_signals();
    prepare_memory();
    if (cell.mode == HV_MODE_REWRITING && !hv_translator_init())
        give_up("no memory for translated code at %#llx", (unsigned long long)HV_CACHE);
    if (cell.mode == HV_MODE_REWRITING || cell.mode == HV_MODE_PARAVIRT)
        hv_sites_init(); /* without it system calls of programs are slower */
    if (cell.mode == HV_MODE_BREAKPOINT && !hv_breakpoint_init())
        give_up("no breakpoint register can be had (perf_event_open: %s); use engine translate", strerror(errno));
    enter_sandbox();
    hv_unmap_views(); /* from now on nothing is mapped but where we say */
    hv_wait_for_turn();
    cell.cpu = cell.area->cpu;
    hv_debug_update();
    hv_enter_first();
}
