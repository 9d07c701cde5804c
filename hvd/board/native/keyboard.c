/* The keyboard controller: Intel 8042 as in the PC/AT and the PS/2 (IBM Personal System/2 Hardware Interface Technical Reference, "Keyboard and
 * auxiliary device controller"), ports 60 and 64, and system control port A, 92; and at the end of its cable a PS/2 keyboard of 102 keys (ibidem,
 * "Keyboards (101- and 102-key)") with scan code sets 1 and 2. What types on it, and snapshots, are Python's (hvd/board/devices/keyboard.py).
 *
 * There is no second port and no mouse, no set 3 (it is refused, as by most of today's keyboards), and no typematic: a key that is typed is released
 * at once. The A20 gate is only a bit: address line 20 is never masked, since no guest that the board loads relies on the wrap. */
#include "board.h"

#include <string.h>

enum { DATA = 0x60, COMMAND = 0x64, CONTROL_A = 0x92 };
#define IRQ 1
enum { STATUS_FULL = 0x01, STATUS_SYSTEM = 0x04, STATUS_COMMAND = 0x08, STATUS_UNLOCKED = 0x10 };
enum { MODE_INTERRUPT = 0x01, MODE_SYSTEM = 0x04, MODE_DISABLED = 0x10, MODE_NO_AUX = 0x20, MODE_TRANSLATE = 0x40 };
enum { LINE_NOT_RESET = 0x01, LINE_A20 = 0x02 };
enum { RELEASED = 0x80, BREAK = 0xf0 };
/* Of the controller. */
enum { READ_RAM = 0x20, WRITE_RAM = 0x60, RAM_END = 0x20, AUX_TEST = 0xa9, SELF_TEST, LINES_TEST, DISABLE = 0xad, ENABLE, READ_INPUT = 0xc0, READ_OUTPUT = 0xd0,
       WRITE_OUTPUT, WRITE_BUFFER, WRITE_AUX_BUFFER, WRITE_AUX, A20_OFF = 0xdd, A20_ON = 0xdf, PULSE = 0xf0 };
/* Of the keyboard. */
enum { SET_LEDS = 0xed, ECHO, SELECT_SET = 0xf0, IDENTIFY = 0xf2, SET_RATE, SCAN, STOP, DEFAULTS, SEND_AGAIN = 0xfe, RESET };
enum { ACK = 0xfa, RESEND = 0xfe, PASSED = 0xaa };

/* What the 8042 makes of a keyboard's bytes (ibidem, "Translation"); of those from 80 on it changes 83 and 84 only. */
static const uint8_t translation[0x85] = {
    0xff, 0x43, 0x41, 0x3f, 0x3d, 0x3b, 0x3c, 0x58, 0x64, 0x44, 0x42, 0x40, 0x3e, 0x0f, 0x29, 0x59,
    0x65, 0x38, 0x2a, 0x70, 0x1d, 0x10, 0x02, 0x5a, 0x66, 0x71, 0x2c, 0x1f, 0x1e, 0x11, 0x03, 0x5b,
    0x67, 0x2e, 0x2d, 0x20, 0x12, 0x05, 0x04, 0x5c, 0x68, 0x39, 0x2f, 0x21, 0x14, 0x13, 0x06, 0x5d,
    0x69, 0x31, 0x30, 0x23, 0x22, 0x15, 0x07, 0x5e, 0x6a, 0x72, 0x32, 0x24, 0x16, 0x08, 0x09, 0x5f,
    0x6b, 0x33, 0x25, 0x17, 0x18, 0x0b, 0x0a, 0x60, 0x6c, 0x34, 0x35, 0x26, 0x27, 0x19, 0x0c, 0x61,
    0x6d, 0x73, 0x28, 0x74, 0x1a, 0x0d, 0x62, 0x6e, 0x3a, 0x36, 0x1c, 0x1b, 0x75, 0x2b, 0x63, 0x76,
    0x55, 0x56, 0x77, 0x78, 0x79, 0x7a, 0x0e, 0x7b, 0x7c, 0x4f, 0x7d, 0x4b, 0x47, 0x7e, 0x7f, 0x6f,
    0x52, 0x53, 0x50, 0x4c, 0x4d, 0x48, 0x01, 0x45, 0x57, 0x4e, 0x51, 0x4a, 0x37, 0x49, 0x46, 0x54,
    0x80, 0x81, 0x82, 0x41, 0x54,
};

static uint8_t translate(uint8_t code) { return code < sizeof translation ? translation[code] : code; }

struct hv_keyboard *hv_board_keyboard(struct hv_board *board) { return &board->own_keyboard; }

/* ---- queues. Nothing in them is trusted: in a cell they are in the run area. */

static unsigned count(const struct hv_key_bytes *queue) { return queue->count < HV_KEY_BYTES ? queue->count : HV_KEY_BYTES; }

static uint8_t pop(struct hv_key_bytes *queue)
{
    uint8_t first = queue->byte[0];
    unsigned left = count(queue) - 1;
    memmove(queue->byte, queue->byte + 1, left);
    queue->count = (uint8_t)left;
    return first;
}

/* Of more than there is room for the first are lost. */
static void push(struct hv_key_bytes *queue, uint8_t byte)
{
    if (count(queue) == HV_KEY_BYTES)
        pop(queue);
    queue->count = (uint8_t)count(queue);
    queue->byte[queue->count++] = byte;
}

/* ---- the keyboard */

static void key_defaults(struct hv_ps2 *ps2)
{
    ps2->keys.count = 0;
    ps2->set = 2;
}

/* Tested and scanning. */
static void key_power_on(struct hv_ps2 *ps2)
{
    ps2->answers.count = 0;
    ps2->awaits = 0;
    key_defaults(ps2);
    ps2->leds = 0;
    ps2->scanning = true;
}

static bool key_has_argument(uint8_t command) { return command == SET_LEDS || command == SELECT_SET || command == SET_RATE; }

static void key_argument(struct hv_ps2 *ps2, uint8_t command, uint8_t value)
{
    if (command == SELECT_SET && value > 2) {
        push(&ps2->answers, RESEND);
        return;
    }
    push(&ps2->answers, ACK);
    if (command == SET_LEDS) {
        ps2->leds = value & 7;
    } else if (command == SELECT_SET && !value) {
        push(&ps2->answers, ps2->set);
    } else if (command == SELECT_SET) {
        ps2->keys.count = 0;
        ps2->set = value;
    }
}

static void key_simple(struct hv_ps2 *ps2, uint8_t command)
{
    switch (command) {
    case ECHO:
        push(&ps2->answers, ECHO);
        return;
    case SEND_AGAIN:
        push(&ps2->answers, ps2->last);
        return;
    case IDENTIFY:
        push(&ps2->answers, ACK);
        push(&ps2->answers, 0xab);
        push(&ps2->answers, 0x83);
        return;
    case RESET:
        key_power_on(ps2);
        push(&ps2->answers, ACK);
        push(&ps2->answers, PASSED);
        return;
    case SCAN:
        ps2->keys.count = 0;
        ps2->scanning = true;
        break;
    case STOP:
        key_defaults(ps2);
        ps2->scanning = false;
        break;
    case DEFAULTS:
        key_defaults(ps2);
        break;
    default:
        push(&ps2->answers, RESEND);
        return;
    }
    push(&ps2->answers, ACK);
}

/* A byte from the system. */
static void key_command(struct hv_ps2 *ps2, uint8_t value)
{
    uint8_t awaits = ps2->awaits;
    ps2->awaits = 0;
    if (awaits && value < SET_LEDS) {
        key_argument(ps2, awaits, value);
    } else if (key_has_argument(value)) {
        ps2->awaits = value;
        push(&ps2->answers, ACK);
    } else {
        key_simple(ps2, value);
    }
}

/* ---- the controller */

/* The next byte into the output buffer, when that is empty: the controller's own first, then, unless its clock is held, the keyboard's. */
static void fill(struct hv_board *board)
{
    struct hv_keyboard *keyboard = board->keyboard;
    struct hv_ps2 *ps2 = &keyboard->ps2;
    if (!keyboard->full && count(&keyboard->answers)) {
        keyboard->buffer = pop(&keyboard->answers);
        keyboard->full = true;
    }
    while (!keyboard->full && !(keyboard->mode & MODE_DISABLED) && (count(&ps2->answers) || count(&ps2->keys))) {
        uint8_t code = ps2->last = pop(count(&ps2->answers) ? &ps2->answers : &ps2->keys);
        if (keyboard->mode & MODE_TRANSLATE && code == BREAK) {
            keyboard->released = RELEASED;
            continue;
        }
        keyboard->buffer = code;
        keyboard->full = true;
        if (keyboard->mode & MODE_TRANSLATE) {
            keyboard->buffer = translate(code) | keyboard->released;
            keyboard->released = 0;
        }
    }
    hv_board_set_irq(board, IRQ, keyboard->full && keyboard->mode & MODE_INTERRUPT);
}

static uint8_t status_of(const struct hv_keyboard *keyboard)
{
    return (uint8_t)(STATUS_UNLOCKED | (keyboard->mode & MODE_SYSTEM) | (keyboard->full ? STATUS_FULL : 0) | (keyboard->last_was_command ? STATUS_COMMAND : 0));
}

static void set_a20(struct hv_keyboard *keyboard, uint8_t value) { keyboard->lines = (uint8_t)((keyboard->lines & ~LINE_A20) | (value & LINE_A20)); }

static void command(struct hv_keyboard *keyboard, uint8_t value)
{
    keyboard->awaits = 0;
    switch (value) {
    case READ_RAM:
        push(&keyboard->answers, keyboard->mode);
        break;
    case READ_RAM + 1 ... READ_RAM + RAM_END - 1:
        push(&keyboard->answers, keyboard->ram[value % RAM_END]);
        break;
    case WRITE_RAM ... WRITE_RAM + RAM_END - 1:
    case WRITE_OUTPUT ... WRITE_AUX:
        keyboard->awaits = value;
        break;
    case SELF_TEST:
        keyboard->mode |= MODE_SYSTEM;
        push(&keyboard->answers, 0x55);
        break;
    case AUX_TEST: /* of the second port's lines: its clock is stuck low */
        push(&keyboard->answers, 1);
        break;
    case LINES_TEST:
        push(&keyboard->answers, 0);
        break;
    case DISABLE:
        keyboard->mode |= MODE_DISABLED;
        break;
    case ENABLE:
        keyboard->mode &= (uint8_t)~MODE_DISABLED;
        break;
    case READ_INPUT: /* not locked */
        push(&keyboard->answers, 0x80);
        break;
    case READ_OUTPUT:
        push(&keyboard->answers, keyboard->lines);
        break;
    case A20_OFF:
    case A20_ON:
        set_a20(keyboard, value);
        break;
    } /* A7 and A8 switch the second port, which this controller has not */
}

static void argument(struct hv_keyboard *keyboard, uint8_t value)
{
    uint8_t awaits = keyboard->awaits;
    keyboard->awaits = 0;
    switch (awaits) {
    case WRITE_RAM:
        keyboard->mode = value | MODE_NO_AUX;
        break;
    case WRITE_OUTPUT:
        keyboard->lines = value | LINE_NOT_RESET;
        break;
    /* D3 should come back as the second port's. That it comes back as the keyboard's, and that A9 fails, tells a driver at once that there is no
     * second port; without any answer Linux spins for half a second twice (drivers/input/serio/i8042.c, i8042_check_aux). */
    case WRITE_BUFFER:
    case WRITE_AUX_BUFFER:
        push(&keyboard->answers, value);
        break;
    case WRITE_AUX: /* lost */
        break;
    default:
        if (awaits < WRITE_RAM + RAM_END)
            keyboard->ram[awaits % RAM_END] = value;
    }
}

static bool pulls_reset_line(const struct hv_keyboard *keyboard, unsigned port, uint8_t value)
{
    if (port == CONTROL_A)
        return value & 1;
    if (port == COMMAND)
        return value >= PULSE && !(value & LINE_NOT_RESET);
    return keyboard->awaits == WRITE_OUTPUT && !(value & LINE_NOT_RESET);
}

void hv_keyboard_reset(struct hv_board *board)
{
    struct hv_keyboard *keyboard = board->keyboard;
    /* As a BIOS leaves it: tested, enabled, translating. */
    keyboard->mode = MODE_INTERRUPT | MODE_SYSTEM | MODE_NO_AUX | MODE_TRANSLATE;
    keyboard->lines = LINE_NOT_RESET | LINE_A20;
    memset(keyboard->ram, 0, sizeof keyboard->ram);
    keyboard->last_was_command = keyboard->awaits = keyboard->full = keyboard->released = 0;
    keyboard->answers.count = 0;
    key_power_on(&keyboard->ps2);
    fill(board);
}

uint8_t hv_keyboard_read(struct hv_board *board, unsigned port)
{
    struct hv_keyboard *keyboard = board->keyboard;
    if (port == COMMAND)
        return status_of(keyboard);
    if (port == CONTROL_A)
        return keyboard->lines & LINE_A20;
    if (!keyboard->full)
        return 0;
    uint8_t value = keyboard->buffer;
    keyboard->full = false;
    /* Down and, with more to come, up again: the interrupt controller sees an edge for every byte. */
    hv_board_set_irq(board, IRQ, false);
    fill(board);
    return value;
}

bool hv_keyboard_write(struct hv_board *board, unsigned port, uint8_t value)
{
    struct hv_keyboard *keyboard = board->keyboard;
    bool reset = pulls_reset_line(keyboard, port, value);
    if (port == CONTROL_A) {
        set_a20(keyboard, value);
        return reset;
    }
    keyboard->last_was_command = port == COMMAND;
    if (port == COMMAND) {
        command(keyboard, value);
    } else if (keyboard->awaits) {
        argument(keyboard, value);
    } else { /* talking to the keyboard lets its clock run again */
        keyboard->mode &= (uint8_t)~MODE_DISABLED;
        key_command(&keyboard->ps2, value);
    }
    fill(board);
    return reset;
}

bool hv_keyboard_press(struct hv_board *board, const uint8_t *codes, size_t length)
{
    struct hv_ps2 *ps2 = &board->keyboard->ps2;
    uint8_t sent[HV_KEYS_MOST], released = 0;
    size_t bytes = 0;
    for (size_t i = 0; i < length; i++) {
        if (bytes == sizeof sent)
            return false;
        if (ps2->set == 1 && codes[i] == BREAK) {
            released = RELEASED;
            continue;
        }
        sent[bytes++] = ps2->set == 1 ? translate(codes[i]) | released : codes[i];
        released = 0;
    }
    if (!ps2->scanning || count(&ps2->keys) + bytes > HV_KEYS_MOST)
        return false;
    for (size_t i = 0; i < bytes; i++)
        push(&ps2->keys, sent[i]);
    fill(board);
    return true;
}

/* ---- on the bus */

static bool here(const struct hv_board *board, uint16_t port, unsigned size)
{
    return size == 1 && (port == DATA || port == COMMAND || port == CONTROL_A) && board->keyboard->there;
}

bool hv_keyboard_in(struct hv_board *board, uint16_t port, unsigned size, uint32_t *value)
{
    if (!here(board, port, size) || (port == DATA && board->keyboard->refused))
        return false;
    *value = hv_keyboard_read(board, port);
    return true;
}

bool hv_keyboard_out(struct hv_board *board, uint16_t port, unsigned size, uint32_t value)
{
    if (!here(board, port, size) || board->keyboard->refused || pulls_reset_line(board->keyboard, port, (uint8_t)value))
        return false;
    hv_keyboard_write(board, port, (uint8_t)value);
    return true;
}

/* ---- another process's */

static void limit_queue(struct hv_key_bytes *queue, unsigned most)
{
    if (queue->count > most)
        queue->count = (uint8_t)most;
}

void hv_keyboard_take(struct hv_keyboard *keyboard, const struct hv_keyboard *theirs)
{
    struct hv_keyboard new;
    memcpy(&new, theirs, sizeof new);
    __asm__ volatile("" : : : "memory"); /* the compiler may not look there again */
    if (memcmp(&new, keyboard, sizeof new) == 0)
        return;
    new.there = keyboard->there;
    new.refused = keyboard->refused;
    new.lines |= LINE_NOT_RESET;
    new.full = !!new.full;
    new.last_was_command = !!new.last_was_command;
    new.released &= RELEASED;
    limit_queue(&new.answers, HV_KEY_BYTES);
    limit_queue(&new.ps2.answers, HV_KEY_BYTES);
    limit_queue(&new.ps2.keys, HV_KEYS_MOST);
    new.ps2.awaits = key_has_argument(new.ps2.awaits) ? new.ps2.awaits : 0;
    new.ps2.leds &= 7;
    new.ps2.set = new.ps2.set == 1 ? 1 : 2;
    new.ps2.scanning = !!new.ps2.scanning;
    *keyboard = new;
}
