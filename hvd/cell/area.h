/* The run area: the memory that a runner and its cell share, and how they take turns.
 *
 * One of the two works at a time. The runner fills in what it wants and writes the eventfd `go`; the cell runs the guest until it needs
 * the runner, fills in `exit` and `cpu`, writes the eventfd `left` and waits for `go`. Only `kick` and the console's rings are used from
 * both sides at once. A guest can take its cell over (it runs in the same process): whatever the cell writes here may be forged, at any
 * time, so that the runner copies first, checks the copy, and uses only that (host.c).
 */
#ifndef HV_AREA_H
#define HV_AREA_H

#include "board.h"
#include "cpu.h"

#define HV_AREA_MAGIC 0x4c434856u /* "VHCL" */
#define HV_AREA_VERSION 8u
#define HV_AREA_REGIONS 64
#define HV_AREA_CPUID 96
#define HV_AREA_RANGES 256
#define HV_AREA_DEVICES 4096 /* bytes: the part of struct hv_board that both sides hand to each other (host.c) */

/* The cell's two views of the guest's linear addresses, 4 GiB each: the low one, and what translated kernel code sees. */
#define HV_LOW_END 0x100000000ull
#define HV_WINDOW 0x300000000ull

/* hvd/board/vcpu.py ExitReason */
enum hv_cell_reason {
    HV_CELL_INTERRUPTED, HV_CELL_PORT_IN, HV_CELL_PORT_OUT, HV_CELL_MMIO_READ, HV_CELL_MMIO_WRITE, HV_CELL_HALT, HV_CELL_HYPERCALL,
    HV_CELL_SHUTDOWN, HV_CELL_DEBUG, HV_CELL_ERROR, HV_CELL_CONSOLE_FULL, HV_CELL_REASONS,
};

enum hv_cell_mode { HV_MODE_TRAP, HV_MODE_REWRITING, HV_MODE_BREAKPOINT /* rewriting, engine breakpoint */, HV_MODE_PARAVIRT };

/* A cell that is made before its guest is known waits for a word (ahead.c). HV_AHEAD_OF_MUCH: its guest will probably have a lot of code at once. */
enum hv_ahead_of { HV_AHEAD_NOT, HV_AHEAD_YES, HV_AHEAD_OF_MUCH };

#define HV_AREA_STRING 1024

struct hv_cell_exit {
    uint32_t reason, size;
    uint64_t address, value; /* value: in for *_OUT and *_WRITE, out for *_IN and *_READ */
    uint64_t rip, start_ns;
    uint32_t flags;          /* HV_RECORD_USER */
    uint32_t count;          /* of PORT_*: elements that may be done at once, in `string`; 0 is 1 */
    char detail[160];        /* of HV_CELL_ERROR; ends with 0 */
};

enum hv_region_kind { HV_REGION_RAM = 1, HV_REGION_ROM = 2, HV_REGION_MMIO = 3 }; /* hvd/board/memory.py RegionKind; the rest floats */
struct hv_cell_region {
    uint64_t start, length, file_offset; /* guest-physical; file_offset of RAM and ROM */
    uint32_t kind;
    uint32_t hot; /* of MMIO: the board in C answers */
};

/* Of the memory file: pages that are there though the guest has not touched them yet. */
#define HV_AREA_TAKEN 8
struct hv_cell_taken {
    uint64_t offset, length;
};

struct hv_cell_cpuid {
    uint32_t leaf, subleaf, any_subleaf, eax, ebx, ecx, edx, reserved;
};

/* What set_debug() asked for (hvd/board/vcpu.py). */
#define HV_AREA_BREAKPOINTS 64
#define HV_AREA_WATCHPOINTS 16
struct hv_cell_debug {
    uint32_t step, breakpoint_count, watchpoint_count, reserved;
    uint32_t breakpoints[HV_AREA_BREAKPOINTS]; /* linear addresses */
    struct { uint32_t address, length, read, write; } watchpoints[HV_AREA_WATCHPOINTS];
};

/* What a kernel can ask for and native code does not do. The runner tells people (hvd/cell/vcpu.py). */
enum hv_neglected { HV_NEGLECTED_FPU /* CR0.TS, CR0.EM, for a kernel that runs natively */ };

/* A cell's own figures; free-running. What others want to know is in struct hv_counters. */
struct hv_cell_counters {
    uint64_t signals, shadow_fills, shadow_upgrades, shadow_drops, address_space_loads, ldt_writes, mode_switches;
    uint64_t translated_blocks, translated_instructions, translated_bytes, cache_flushes, code_writes;
    uint64_t neglected; /* 1 << enum hv_neglected */
    uint64_t reserved[19];
};

/* Code pages that the guest's kernel executed, for the census: bit = page of the guest-physical address space below 4 GiB that a
 * kernel-mode fill mapped executable, with the linear page it was seen at. */
#define HV_AREA_CODE_PAGES 8192
struct hv_cell_code {
    uint32_t count;          /* entries used; stops at HV_AREA_CODE_PAGES */
    uint32_t entry[HV_AREA_CODE_PAGES]; /* linear addresses at which kernel code was seen to execute */
};

/* The census of what was rewritten (census.c). The runner asks for it in turns of their own, in which the guest does not run. */
#define HV_AREA_SITES (1u << 17)
enum hv_census {
    HV_CENSUS_NONE,
    HV_CENSUS_COUNT,   /* from now on each site counts, from 0 */
    HV_CENSUS_COLLECT, /* the sites of all code that is translated now, into the table */
    HV_CENSUS_END,     /* no counting any more */
};
enum hv_replacement { /* hvd/cell/rewritten.py */
    HV_REPLACED_NOT, HV_REPLACED_IN_LINE, HV_REPLACED_CALLOUT, HV_REPLACED_CHAINED, HV_REPLACED_LOOKUP, HV_REPLACED_BREAKPOINT, HV_REPLACEMENTS,
};
struct hv_cell_site {
    uint64_t executions; /* while they were counted */
    uint32_t address;    /* linear */
    uint8_t replacement, length, code[HV_LONGEST_INSTRUCTION];
    uint8_t reserved[3];
};
struct hv_cell_census {
    uint32_t command;    /* the runner's, enum hv_census */
    uint32_t count;      /* of sites */
    uint32_t full;       /* there were more */
    uint32_t blocks, pages, reserved; /* of code that is translated now */
    uint64_t instructions;
    struct hv_cell_site site[HV_AREA_SITES];
};

/* Random numbers for the guest, from the runner, which adds what was taken at each turn. */
#define HV_ENTROPY_BYTES 512u
struct hv_entropy {
    uint32_t left; /* of them, from the first on */
    uint8_t byte[HV_ENTROPY_BYTES];
};

enum { HV_CELL_REGISTERS = 1, HV_CELL_WHOLE_STATE };

struct hv_cell_area {
    uint32_t magic, version;

    /* ---- set once by the runner, before the cell starts */
    uint32_t mode;        /* enum hv_cell_mode */
    uint32_t region_count, cpuid_count;
    uint32_t backend;     /* enum hv_backend_id, for records */
    uint32_t runner;      /* its process */
    uint32_t ahead;       /* enum hv_ahead_of */
    uint64_t memory_size; /* bytes of the memory file */
    uint64_t tsc_told_hz; /* what the guest was told of its time stamp counter; 0 = nothing */
    struct hv_cell_region regions[HV_AREA_REGIONS];
    struct hv_cell_cpuid cpuid[HV_AREA_CPUID];
    uint32_t taken_count;
    struct hv_cell_taken taken[HV_AREA_TAKEN];
    uint8_t claimed[65536 / 8]; /* struct hv_board's */

    /* ---- the runner's word to the cell, at `go` */
    uint32_t quit;          /* end yourself */
    uint32_t cpu_changed;   /* HV_CELL_REGISTERS or more: take `cpu` over; an access that waits for its answer is dropped */
    uint32_t debug_changed;
    uint32_t range_count;   /* ranges of guest-physical memory that were written: address, length; more than fit = all of it */
    uint64_t ranges[HV_AREA_RANGES][2];
    uint64_t answer;        /* of *_IN and *_READ */
    uint32_t string_done;   /* of PORT_*: how many elements were done, at least one */
    struct hv_clock clock;
    uint64_t tsc_at_zero;   /* what the guest's time stamp counter was when its clock was 0, if it is counted */
    uint32_t tsc_counted;   /* by that clock, with tsc_told_hz, and RDTSC traps; 0 = it is the host's, natively */
    struct hv_cell_debug debug;
    uint32_t tapped;        /* a debugger wants to see the crossings: `tap`, which is empty */

    /* ---- both, whoever has the turn */
    struct hv_cpu cpu;
    uint8_t devices[HV_AREA_DEVICES];
    struct hv_pci_spaces pci_spaces;
    struct hv_cmos cmos;
    struct hv_vga vga;
    struct hv_keyboard keyboard;
    struct hv_acpi acpi;
    struct hv_entropy entropy;
    uint32_t string[HV_AREA_STRING]; /* elements of INS and OUTS: the latter's, or answers from the second one on */

    /* ---- the cell's word to the runner, at `left` */
    uint32_t sandbox;        /* enum hv_sandbox (start.h) */
    struct hv_cell_exit exit;
    struct hv_cell_counters counters;
    struct hv_cell_code code;
    struct hv_tap tap;

    /* ---- at any time */
    uint32_t kick; /* leave at the next instruction boundary */
    struct hv_console console;

    struct hv_cell_census census;
};

/* The cell's descriptors, by number. */
enum hv_cell_fd {
    HV_CELL_FD_AREA = 3, HV_CELL_FD_MEMORY, HV_CELL_FD_GO, HV_CELL_FD_LEFT, HV_CELL_FD_CONSOLE /* eventfd: output */, HV_CELL_FD_COUNTERS, HV_CELL_FD_TRACE,
    HV_CELL_FDS,
    HV_CELL_FD_BREAKPOINT = HV_CELL_FDS, /* of engine breakpoint: the cell's own */
    HV_CELL_FD_SITES = HV_CELL_FDS,      /* of engine translate: as well */
};
/* The runner's word to a cell that was made ahead: one packet on a socket, as hvd/cell/process.py sends it, with these descriptors in this order:
 * counters, trace, and the namespaces of its jail for network and mounts. */
#define HV_CELL_FD_WORD 0
#define HV_WORD_FILTER 1024u
struct hv_cell_word {
    uint32_t user;  /* and group */
    uint32_t count; /* of struct sock_filter: the runner's own filter of system calls, which its children have, too */
    uint64_t filter[HV_WORD_FILTER];
};

#define HV_CELL_KICK_SIGNAL 10 /* SIGUSR1: after area->kick was set */

#endif
