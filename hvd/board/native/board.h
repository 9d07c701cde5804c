/* The hot part of the board: the devices that a running kernel touches all the time, once, in C.
 *
 * Linked into the emulation shim now and into the cell later, as KVM keeps the same devices in the host kernel. Everything a machine
 * needs to be saved is in struct hv_board. No allocation, no threads of its own; unless a function says otherwise only the vcpu thread
 * may call it.
 */
#ifndef HV_BOARD_H
#define HV_BOARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crossing.h"
#include "pci.h"

#define HV_NEVER UINT64_MAX

/* ---- clock.c: the guest's virtual clock, in nanoseconds since its start; it stands while the guest is paused. */
struct hv_clock {
    uint64_t base_ns;    /* host CLOCK_MONOTONIC at virtual 0 */
    uint64_t stopped_ns; /* virtual time at which it stands, or stood the last time; 0 = it has not stood yet */
    uint64_t stopped_tsc; /* the host's time stamp counter at that moment */
    bool running;
};
uint64_t hv_host_ns(void);  /* CLOCK_MONOTONIC */
uint64_t hv_host_tsc(void); /* the time stamp counter; 0 on a host that is no x86-64 */
extern bool hv_clock_by_call; /* by a system call, without the vDSO, which executes RDTSC */
void hv_clock_start(struct hv_clock *);
void hv_clock_stop(struct hv_clock *);
uint64_t hv_clock_now(const struct hv_clock *);                     /* virtual ns */
uint64_t hv_clock_to_host(const struct hv_clock *, uint64_t ns);    /* host ns at which virtual ns comes; HV_NEVER while stopped */

/* ---- pic.c: two cascaded 8259A (Intel 8259A data sheet), ports 20/21, A0/A1, ELCR 4D0/4D1. */
struct hv_pic_chip {
    uint8_t irr, isr, imr, vector_base;
    uint8_t lines;     /* present level of the eight inputs */
    uint8_t elcr;      /* 1 = level triggered */
    uint8_t init_step; /* 0 = none, else the next ICW: 2, 3, 4 */
    uint8_t icw4_needed, auto_eoi, rotate_on_auto_eoi, special_mask, special_fully_nested, poll, read_isr;
    uint8_t lowest_priority; /* the input that has the lowest priority; 7 after reset */
    uint8_t single;          /* ICW1.SNGL: no ICW3 follows */
};
struct hv_pic {
    struct hv_pic_chip chip[2]; /* master, slave */
};
void hv_pic_reset(struct hv_pic *);
/* A device holds its line until it is served: an edge-triggered request ends when its line falls (8259A data sheet, "IR inputs"). */
void hv_pic_set_line(struct hv_pic *, unsigned irq, bool level);
bool hv_pic_pending(const struct hv_pic *);          /* is INTR of the master high */
int hv_pic_peek(const struct hv_pic *);              /* vector that hv_pic_acknowledge would give, without its effects; -1 none */
uint8_t hv_pic_acknowledge(struct hv_pic *);         /* INTA: vector; the spurious one (base+7) when nothing is pending */
uint8_t hv_pic_read(struct hv_pic *, uint16_t port);
void hv_pic_write(struct hv_pic *, uint16_t port, uint8_t value);

/* ---- lapic.c: the processor's local APIC (Intel SDM vol. 3A), registers at HV_LAPIC_ADDRESS; its timer counts nanoseconds. */
#define HV_LAPIC_ADDRESS 0xfee00000u
#define HV_LAPIC_BASE_BSP 0x100u    /* IA32_APIC_BASE: this is the processor that boots */
#define HV_LAPIC_BASE_ENABLE 0x800u
enum { HV_LVT_TIMER, HV_LVT_THERMAL, HV_LVT_PERFORMANCE, HV_LVT_LINT0, HV_LVT_LINT1, HV_LVT_ERROR, HV_LVT_COUNT };
struct hv_lapic {
    uint64_t base; /* IA32_APIC_BASE */
    uint32_t isr[8], tmr[8], irr[8];
    uint32_t lvt[HV_LVT_COUNT];
    uint32_t ldr, dfr, svr, icr, icr_high;
    uint32_t esr, errors; /* as read; found since ESR was written */
    uint32_t initial_count, divide;
    uint8_t id, tpr;
    bool nmi;              /* one waits for the processor, which takes it back */
    bool given;            /* the timer's last tick was not seen to be taken yet */
    uint64_t next_tick_ns; /* virtual time, also of the TSC deadline; HV_NEVER */
    /* Ticks of a periodic timer are owed as the 8254's are: see below. */
    uint64_t owed, pause_end_ns;
    uint64_t rest_end_ns; /* of hv_board_rest() */
};
void hv_lapic_reset(struct hv_lapic *);
bool hv_lapic_enabled(const struct hv_lapic *);       /* by IA32_APIC_BASE and by its own spurious vector register */
bool hv_lapic_takes_extint(const struct hv_lapic *);  /* does the 8259's INTR reach the processor through it */
int hv_lapic_peek(const struct hv_lapic *);           /* the vector that would be delivered now; -1 none */
uint8_t hv_lapic_acknowledge(struct hv_lapic *);      /* the spurious vector when there is none */
/* A message arrives. mode: delivery mode, 0-7. Returns whether it was accepted. */
bool hv_lapic_deliver(struct hv_lapic *, unsigned mode, uint8_t vector, bool level);
bool hv_lapic_is(const struct hv_lapic *, uint8_t destination, bool logical); /* is a message for it */
bool hv_lapic_holds(const struct hv_lapic *, uint8_t vector);                 /* requested or in service */
/* offset: from HV_LAPIC_ADDRESS; registers are 32 bits wide at multiples of 16. */
uint32_t hv_lapic_read(struct hv_lapic *, uint32_t offset, uint64_t now_ns);
/* Returns the vector whose end IOAPICs must hear of, -1 if none. */
int hv_lapic_write(struct hv_lapic *, uint32_t offset, uint32_t value, uint64_t now_ns);
void hv_lapic_advance(struct hv_lapic *, uint64_t now_ns);  /* the timer */
uint64_t hv_lapic_deadline(const struct hv_lapic *);        /* virtual ns of its next tick to give; HV_NEVER */
void hv_lapic_write_base(struct hv_lapic *, uint64_t value); /* IA32_APIC_BASE */
/* IA32_TSC_DEADLINE, where the TSC counts nanoseconds of the virtual clock. */
void hv_lapic_write_deadline(struct hv_lapic *, uint64_t tsc_ns);
uint64_t hv_lapic_read_deadline(const struct hv_lapic *);

/* ---- ioapic.c: 82093AA, registers at HV_IOAPIC_ADDRESS. */
#define HV_IOAPIC_ADDRESS 0xfec00000u
#define HV_IOAPIC_PINS 24u
struct hv_ioapic {
    uint64_t entries[HV_IOAPIC_PINS]; /* the redirection table */
    uint32_t lines;                   /* inputs that are asserted */
    uint8_t index, id;
};
void hv_ioapic_reset(struct hv_ioapic *);
void hv_ioapic_set_line(struct hv_ioapic *, unsigned pin, bool level, struct hv_lapic *);
void hv_ioapic_refresh(struct hv_ioapic *, struct hv_lapic *); /* the local APIC may accept now what it refused */
void hv_ioapic_end_of_interrupt(struct hv_ioapic *, uint8_t vector, struct hv_lapic *);
bool hv_ioapic_masked(const struct hv_ioapic *, unsigned pin);
uint8_t hv_ioapic_vector(const struct hv_ioapic *, unsigned pin);
bool hv_ioapic_passes_extint(const struct hv_ioapic *); /* input 0, which is the 8259's INTR, is let through */
uint32_t hv_ioapic_read(const struct hv_ioapic *, uint32_t offset);
void hv_ioapic_write(struct hv_ioapic *, uint32_t offset, uint32_t value, struct hv_lapic *);

/* ---- pit.c: 8254 (Intel 8254 data sheet), ports 40-43, and the speaker/gate port 61. Channel 0 drives IRQ 0. */
struct hv_pit_channel {
    uint8_t mode, access, bcd;
    uint8_t write_low_done, write_latch; /* between the two bytes of access 3 */
    uint8_t read_high_next;
    uint8_t count_latched, status_latched, status;
    uint8_t gate, loaded, output_hint;
    uint16_t latch;
    uint32_t reload;      /* 1..65536 (10000 in BCD) */
    uint64_t start_ns;    /* virtual time of the last load or gate trigger */
    uint32_t next_reload; /* the count as last written: a one-shot or a period under way ends with the old one */
    uint64_t stopped_ns;  /* virtual time; gate low: when it fell; gate high and next_reload != reload: when next_reload takes over */
};
#define HV_PIT_HZ 1193182u
/* Ticks of IRQ 0. A guest that counts them must not lose time because the host ran something else, and must not be buried under them
 * afterwards. So a tick that comes due while the one before is not taken yet (requested or in service in the 8259) is owed, and given
 * when that is done and an eighth of the period has passed, HV_PIT_LEAST_PAUSE_NS at least. No more than HV_PIT_OWED_SECONDS' worth is
 * owed. Nothing is owed after the guest programmed channel 0 or initialised the 8259, or for a time in which IRQ 0 was masked for
 * longer than HV_PIT_MASKED_NS (Linux masks it for the moments in its handler). */
#define HV_PIT_LEAST_PAUSE_NS 50000u
#define HV_PIT_OWED_SECONDS 1u
#define HV_PIT_MASKED_NS 1000000000u
struct hv_pit {
    struct hv_pit_channel channel[3];
    uint8_t port61;       /* bits 0,1 as written */
    uint64_t next_edge_ns; /* of channel 0's output, the first that is not accounted for yet; HV_NEVER */
    uint64_t owed;         /* edges that came due and were not given yet */
    uint64_t pause_end_ns; /* the next edge comes no sooner */
    uint64_t masked_ns;    /* virtual time at which IRQ 0 was masked; 0 = has been since reset */
    uint64_t missed;       /* edges that were never given: more than could be owed */
    bool given;            /* the last edge was not seen to be taken yet */
    uint64_t rest_end_ns;  /* of hv_board_rest() */
};
void hv_pit_reset(struct hv_pit *, uint64_t now_ns);
uint8_t hv_pit_read(struct hv_pit *, uint16_t port, uint64_t now_ns);
void hv_pit_write(struct hv_pit *, uint16_t port, uint8_t value, uint64_t now_ns);
/* taken: IRQ 0 is neither requested nor in service. */
bool hv_pit_advance(struct hv_pit *, uint64_t now_ns, bool taken);       /* account for time; true: give one edge to IRQ 0 now */
uint64_t hv_pit_deadline(const struct hv_pit *, bool taken);             /* virtual ns of the next edge to give; HV_NEVER */
void hv_pit_masked(struct hv_pit *, uint64_t now_ns, bool masked);       /* the guest masked or unmasked IRQ 0 */
void hv_pit_forgive(struct hv_pit *, uint64_t now_ns);                   /* nothing is owed for the time before now_ns */
bool hv_pit_output(const struct hv_pit *, unsigned channel, uint64_t now_ns);

/* ---- uart.c: 16550A (National PC16550D data sheet), COM1, ports 3F8-3FF, IRQ 4. */
#define HV_UART_FIFO 16
#define HV_UART_POLLS 8 /* readings of LSR in a row, nothing sent between: the guest polls for input */
struct hv_uart {
    uint8_t ier, iir_thri, lcr, mcr, lsr, msr, scr, fcr;
    uint8_t rx[HV_UART_FIFO], rx_head, rx_count, rx_overrun, polls;
    uint16_t divisor;
    uint64_t tx_bytes, rx_bytes;
};
void hv_uart_reset(struct hv_uart *);
bool hv_uart_irq(const struct hv_uart *);            /* level of its interrupt output */
bool hv_uart_can_receive(const struct hv_uart *);
void hv_uart_receive(struct hv_uart *, uint8_t byte);
uint8_t hv_uart_read(struct hv_uart *, unsigned reg);
/* Returns a byte to transmit (0..255), or -1. */
int hv_uart_write(struct hv_uart *, unsigned reg, uint8_t value);
bool hv_uart_transmits(const struct hv_uart *, unsigned reg); /* would a write to reg return a byte now */

/* ---- console.c: two byte rings between the vcpu thread and the runner's main thread; one writer and one reader each. They may lie in
 * memory that is shared with a process which is not trusted (hvd/cell/area.h): whatever stands in them, no function goes beyond them. */
#define HV_CONSOLE_OUT (1u << 16)
#define HV_CONSOLE_IN (1u << 12)
struct hv_console {
    uint32_t out_head, out_tail, in_head, in_tail; /* free-running */
    uint32_t out_notify; /* the reader sleeps: wake it through the board's out_event */
    uint32_t out_doze;   /* the reader comes by itself after a while: wake it only when the guest has said something and waits */
    uint8_t out[HV_CONSOLE_OUT], in[HV_CONSOLE_IN];
};
void hv_console_init(struct hv_console *);
bool hv_console_full(const struct hv_console *);                                 /* vcpu thread */
int hv_console_read(struct hv_console *);                                        /* vcpu thread; -1 = empty */
/* vcpu thread; returns how many fitted. out_event: eventfd, -1 = none. */
size_t hv_console_write(struct hv_console *, int out_event, const uint8_t *bytes, size_t length);
size_t hv_console_unread(const struct hv_console *, uint8_t *buffer, size_t capacity); /* vcpu thread: typed, and not read yet */
void hv_console_rest(struct hv_console *, int out_event);                        /* vcpu thread: the guest is about to wait */
size_t hv_console_take(struct hv_console *, uint8_t *buffer, size_t capacity);   /* main thread */
size_t hv_console_put(struct hv_console *, const uint8_t *bytes, size_t length); /* main thread; returns how many fitted */
bool hv_console_sleep(struct hv_console *);                                      /* main thread: ask for a wake-up; false = there is output already */
void hv_console_doze(struct hv_console *);                                       /* main thread: ask for a wake-up by hv_console_rest(), once */

/* ---- window.c: the data ports of devices in Python (IDE), which guests read and write hundreds of times in a row. */
#define HV_WINDOWS 4
#define HV_WINDOW_BYTES 8192
struct hv_window {
    uint32_t position, length; /* bytes: what the guest has had, and all */
    uint16_t port;
    uint8_t open, out;         /* out: the guest writes */
    uint8_t data[HV_WINDOW_BYTES];
};
struct hv_board;
/* size is 1, 2 or 4. false: no window is open there, or this access is the last one of it; it goes to the device. */
bool hv_window_in(struct hv_board *, uint16_t port, unsigned size, uint32_t *value);
bool hv_window_out(struct hv_board *, uint16_t port, unsigned size, uint32_t value);
struct hv_window *hv_board_window(struct hv_board *, unsigned index); /* NULL: there is none of that number */

/* ---- cmos.c: the CMOS clock, ports 70 and 71. Its device is in Python (hvd/board/devices/cmos.py). */
struct hv_cmos {
    int64_t base_s;   /* time of day in seconds since 1970 at virtual time 0; while it is frozen, the time of day */
    uint32_t base_ns; /* and nanoseconds, less than a second */
    uint8_t there, frozen, index;
    uint8_t memory[128];
};
struct hv_cmos *hv_board_cmos(struct hv_board *);
bool hv_cmos_in(const struct hv_board *, uint16_t port, unsigned size, uint32_t *value); /* false: not here, Python does it */
bool hv_cmos_out(struct hv_board *, uint16_t port, unsigned size, uint32_t value);
bool hv_cmos_register(const struct hv_board *, unsigned index, uint32_t *value);
/* What a guest in another process did: it set the index. Whatever stands there, the result is sound. */
void hv_cmos_take(struct hv_cmos *, const struct hv_cmos *theirs);

/* ---- vga.c: the VGA's registers. What is shown is Python's (hvd/board/devices/vga.py). */
struct hv_vga {
    uint8_t there; /* it is plugged in */
    uint8_t misc, feature, pel_mask, status;
    uint8_t sequencer_index, crtc_index, graphics_index, attribute_index, attribute_data_next;
    uint8_t color_index, color_component, color_reading;
    uint8_t sequencer[8], crtc[25], graphics[9], attribute[21], colors[3 * 256];
};
struct hv_vga *hv_board_vga(struct hv_board *);
bool hv_vga_in(struct hv_board *, uint16_t port, unsigned size, uint32_t *value); /* false: not here */
bool hv_vga_out(struct hv_board *, uint16_t port, unsigned size, uint32_t value);
/* What a guest in another process did. Whatever stands there, the result is sound. */
void hv_vga_take(struct hv_vga *, const struct hv_vga *theirs);

/* ---- keyboard.c: 8042 and keyboard, ports 60, 64 and 92. What types on it is Python's (hvd/board/devices/keyboard.py). */
#define HV_KEY_BYTES 16
/* Of keys. With the one in the controller's own buffer they are the 16 that drivers expect at most of a keyboard that somebody types on while they
 * look for it (Linux, I8042_BUFFER_SIZE). */
#define HV_KEYS_MOST 15
struct hv_key_bytes {
    uint8_t count, byte[HV_KEY_BYTES]; /* the first comes next */
};
struct hv_ps2 { /* the keyboard itself */
    struct hv_key_bytes answers, keys;
    uint8_t last;   /* what was sent last */
    uint8_t leds;
    uint8_t awaits; /* the command whose argument comes next; 0 = none */
    uint8_t set, scanning;
};
struct hv_keyboard {
    uint8_t there, refused; /* it is plugged in; somebody who types waits for room, of which Python tells */
    uint8_t mode, lines, last_was_command;
    uint8_t awaits;         /* the command whose data byte comes next; 0 = none */
    uint8_t full, buffer;   /* port 60 */
    uint8_t released;       /* 0x80 when the translation has swallowed a break code */
    uint8_t ram[32];
    struct hv_key_bytes answers; /* the controller's own that wait for the buffer */
    struct hv_ps2 ps2;
};
struct hv_keyboard *hv_board_keyboard(struct hv_board *);
/* False: not here, Python does it: the reset line, and while somebody waits for room. */
bool hv_keyboard_in(struct hv_board *, uint16_t port, unsigned size, uint32_t *value);
bool hv_keyboard_out(struct hv_board *, uint16_t port, unsigned size, uint32_t value);
void hv_keyboard_reset(struct hv_board *);
uint8_t hv_keyboard_read(struct hv_board *, unsigned port);
bool hv_keyboard_write(struct hv_board *, unsigned port, uint8_t value); /* true: it pulls the reset line */
/* Codes of set 2 of keys that are pressed and released. False, and nothing of it: there is no room for all, or it does not scan. */
bool hv_keyboard_press(struct hv_board *, const uint8_t *codes, size_t length);
void hv_keyboard_take(struct hv_keyboard *, const struct hv_keyboard *theirs); /* as hv_vga_take */

/* ---- acpi.c: PM1, PM2 and the power management timer, ports 600-605, 608-60B, A79 (hvd/board/devices/acpi_pm.py). */
struct hv_acpi {
    uint16_t status, enable, control;
    uint8_t there, arbiter;
    uint8_t half; /* of the timer's range, when the guest cleared its status */
};
struct hv_acpi *hv_board_acpi(struct hv_board *);
/* False: not here, Python does it: switching off, and accesses that reach beyond. */
bool hv_acpi_in(const struct hv_board *, uint16_t port, unsigned size, uint32_t *value);
bool hv_acpi_out(struct hv_board *, uint16_t port, unsigned size, uint32_t value);
uint8_t hv_acpi_read(const struct hv_board *, unsigned port);
bool hv_acpi_write(struct hv_board *, unsigned port, uint8_t value); /* true: it switches the machine off. hv_acpi_drive() after the last byte */
void hv_acpi_drive(struct hv_board *);                                /* the SCI, by status and enable */
void hv_acpi_take(struct hv_acpi *, const struct hv_acpi *theirs);    /* as hv_vga_take */

/* ---- board.c: ports, interrupt lines and time together. */
enum hv_port_result {
    HV_PORT_DONE,    /* handled here */
    HV_PORT_LEAVE,   /* a Python device claims it: leave the vcpu with PortIo */
    HV_PORT_WAIT,    /* the console is full: let the main thread drain it, then do the same access again */
};
struct hv_board {
    struct hv_clock clock;
    struct hv_pic pic;
    struct hv_lapic lapic;
    struct hv_ioapic ioapic;
    struct hv_pit pit;
    struct hv_uart uart;
    struct hv_pci pci;
    bool typed_to_virtio;       /* what is typed is for the virtio console: it wrote last; otherwise for COM1 */
    /* From pic to here the state is plain values: what a cell and its runner hand to each other (hvd/cell/leave.c). */
    uint8_t claimed[65536 / 8]; /* ports that Python devices claim; an unclaimed port floats: reads all ones */
    struct hv_pci_spaces *spaces; /* own_spaces, or where another process has put them */
    struct hv_pci_spaces own_spaces;
    struct hv_cmos *cmos;       /* likewise */
    struct hv_cmos own_cmos;
    struct hv_vga *vga;
    struct hv_vga own_vga;
    struct hv_keyboard *keyboard;
    struct hv_keyboard own_keyboard;
    struct hv_acpi *acpi;
    struct hv_acpi own_acpi;
    int out_event;              /* eventfd that is written when the console has output and the reader sleeps; -1 = none */
    struct hv_console *console; /* own_console unless hv_board_use_console said otherwise */
    struct hv_console own_console;
    struct hv_crossings crossings;
    struct hv_window window[HV_WINDOWS];
};
/* out_event: eventfd that is written when the console has output and the reader sleeps. counters/trace: mapped files or NULL. */
void hv_board_init(struct hv_board *, int out_event, void *counters, size_t counters_size, void *trace, size_t trace_size, unsigned backend);
size_t hv_board_size(void);
/* The parts, for callers that do not know the struct's layout (ctypes). */
struct hv_clock *hv_board_clock(struct hv_board *);
struct hv_pic *hv_board_pic(struct hv_board *);
struct hv_console *hv_board_console(struct hv_board *);
/* From now on the rings at `console`, which are initialised; NULL = the board's own. What was typed and not read, and what
 * was written and not taken yet, moves there. No other thread may use the console meanwhile, and it asks for hv_board_console anew. The reader is woken by the
 * next output. */
void hv_board_use_console(struct hv_board *, struct hv_console *console);
struct hv_crossings *hv_board_crossings(struct hv_board *);
struct hv_counters *hv_board_counters(struct hv_board *); /* never NULL */
/* A vcpu outside of C executed for run_ns and halted for halted_ns; the first call tells of the first instruction. */
void hv_board_account(struct hv_board *, uint64_t run_ns, uint64_t halted_ns);
/* The console's rings for the virtio console, beside COM1. Return how many bytes there was room for, and how many were typed for it. */
size_t hv_board_console_write(struct hv_board *, const uint8_t *bytes, size_t length);
size_t hv_board_console_read(struct hv_board *, uint8_t *bytes, size_t capacity);
size_t hv_board_console_waiting(const struct hv_board *); /* bytes that the next read would find */
bool hv_board_typed_to_virtio(const struct hv_board *);
void hv_board_type_to_virtio(struct hv_board *, bool);
void hv_board_reset(struct hv_board *); /* the reset line: devices, not the clock nor the console rings */
void hv_board_claim(struct hv_board *, uint16_t first, uint16_t count);
bool hv_board_answers(uint16_t port); /* bytes there, without the runner: a write may have to wait, nothing leaves */
/* size is 1, 2 or 4 bytes. Byte-wide devices see the low byte at the port; wider accesses to them are split as on the ISA bus. */
enum hv_port_result hv_board_port_in(struct hv_board *, uint16_t port, unsigned size, uint32_t *value);
enum hv_port_result hv_board_port_out(struct hv_board *, uint16_t port, unsigned size, uint32_t value);
/* Memory-mapped registers of the board: local APIC, IOAPIC, and of PCI's functions what is in C. size is 1, 2, 4 or 8 bytes. False: nothing of the
 * board is there; a device in Python may be. */
bool hv_board_mmio_read(struct hv_board *, uint64_t address, unsigned size, uint64_t *value);
enum hv_mmio_result hv_board_mmio_write(struct hv_board *, uint64_t address, unsigned size, uint64_t value);
/* A device asserts or drops its interrupt line. Global system interrupts 0-15 are the ISA's IRQs and drive 8259 and IOAPIC (0 its input 2,
 * the others that of their number; there is no GSI 2), 16-23 the IOAPIC alone. */
void hv_board_set_irq(struct hv_board *, unsigned gsi, bool level);
/* A message-signalled interrupt: a write of data to address (SDM vol. 3A, "Message Signalled Interrupts"). Elsewhere it is lost. */
void hv_board_msi(struct hv_board *, uint64_t address, uint32_t data);
/* The interrupt that the processor would take now, of either controller: its vector, -1 none. */
int hv_board_peek(const struct hv_board *);
/* Let time pass: run due timers, move typed bytes into the UART, refresh the interrupt lines. Returns whether hv_board_peek finds one. */
bool hv_board_advance(struct hv_board *);
/* Host ns of the next timer; HV_NEVER. It changes with every access to the timers and, as ticks wait for their turn, to the interrupt controllers. */
uint64_t hv_board_deadline(const struct hv_board *);
/* The processor takes the interrupt: its vector, and what that means for the timers. */
uint8_t hv_board_acknowledge(struct hv_board *);
/* For a processor so slow that a tick's handler takes longer than the timer's period: is a vector that it took a tick of the 8254 or of the local
 * APIC's timer; and none of the two requests one before until_ns (virtual time). What comes due meanwhile is owed. */
bool hv_board_is_tick(const struct hv_board *, uint8_t vector);
void hv_board_rest(struct hv_board *, uint64_t until_ns);
/* CR8 and the local APIC's task priority register are one. */
uint8_t hv_board_cr8(const struct hv_board *);
void hv_board_set_cr8(struct hv_board *, uint8_t cr8);
/* MSRs of the local APIC: IA32_APIC_BASE and IA32_TSC_DEADLINE. False: another one. */
bool hv_board_read_msr(struct hv_board *, uint32_t number, uint64_t *value);
bool hv_board_write_msr(struct hv_board *, uint32_t number, uint64_t value);

#endif
