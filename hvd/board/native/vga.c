/* The VGA's registers (IBM VGA/XGA Technical Reference Manual, chapter 2): all that a guest writes and reads. What follows from them, and their
 * values after a reset, are Python's (hvd/board/devices/vga.py). */
#include "board.h"

#include <string.h>

/* Where they are when the CRT controller has its colour addresses; status 1 and feature control share one. */
enum {
    CRTC_MONO = 0x3b4, CRTC_MONO_DATA, STATUS_MONO = 0x3ba,
    ATTRIBUTE = 0x3c0, ATTRIBUTE_DATA, STATUS_0_AND_MISC, SEQUENCER = 0x3c4, SEQUENCER_DATA, PEL_MASK, DAC_STATE, DAC_INDEX, DAC_DATA,
    FEATURE, MISC = 0x3cc, GRAPHICS = 0x3ce, GRAPHICS_DATA, CRTC = 0x3d4, CRTC_DATA, STATUS = 0x3da,
};
#define TO_COLOR (CRTC - CRTC_MONO)
enum { MISC_COLOR = 1, STATUS_0_SWITCH = 0x10, STATUS_TOGGLES = 0x09 /* display enable, vertical retrace */ };
enum { PROTECT = 0x11, PROTECT_BIT = 0x80, OVERFLOW = 7, LINE_COMPARE_BIT = 0x10 };
enum { DAC_READS = 3, COLOR_BITS = 0x3f, ATTRIBUTE_BITS = 0x3f, PALETTE_BITS = 0x1f };

struct hv_vga *hv_board_vga(struct hv_board *board) { return &board->own_vga; }

static bool of_vga(uint32_t port)
{
    return (port >= ATTRIBUTE && port <= GRAPHICS_DATA) || port == CRTC || port == CRTC_DATA || port == STATUS || port == CRTC_MONO ||
        port == CRTC_MONO_DATA || port == STATUS_MONO;
}

/* A port as that of the colour addresses; 0 = it is not there now. */
static unsigned place(const struct hv_vga *vga, unsigned port)
{
    bool color = vga->misc & MISC_COLOR;
    if (port < ATTRIBUTE)
        return color ? 0 : port + TO_COLOR;
    return port >= CRTC && !color ? 0 : port;
}

#define REGISTER(bank, index) ((index) < sizeof(bank) ? (bank)[index] : 0)
#define STORE(bank, index, value) \
    do {                          \
        unsigned at_ = (index);   \
        if (at_ < sizeof(bank))   \
            (bank)[at_] = (value); \
    } while (0)

/* The component of the palette that comes next; the index moves on after three. */
static uint8_t *next_color(struct hv_vga *vga)
{
    unsigned component = vga->color_component % 3u;
    uint8_t *color = &vga->colors[3 * vga->color_index + component];
    vga->color_component = (uint8_t)((component + 1) % 3);
    vga->color_index += component == 2;
    return color;
}

static uint8_t read_byte(struct hv_vga *vga, unsigned port)
{
    switch (place(vga, port)) {
    case CRTC:
        return vga->crtc_index;
    case CRTC_DATA:
        return REGISTER(vga->crtc, vga->crtc_index);
    case STATUS:
        vga->attribute_data_next = 0;
        return vga->status ^= STATUS_TOGGLES;
    case ATTRIBUTE:
        return vga->attribute_index;
    case ATTRIBUTE_DATA:
        return REGISTER(vga->attribute, vga->attribute_index & PALETTE_BITS);
    case STATUS_0_AND_MISC:
        return STATUS_0_SWITCH;
    case SEQUENCER:
        return vga->sequencer_index;
    case SEQUENCER_DATA:
        return REGISTER(vga->sequencer, vga->sequencer_index);
    case PEL_MASK:
        return vga->pel_mask;
    case DAC_STATE:
        return vga->color_reading ? DAC_READS : 0;
    case DAC_INDEX:
        return vga->color_index;
    case DAC_DATA:
        return *next_color(vga);
    case FEATURE:
        return vga->feature;
    case MISC:
        return vga->misc;
    case GRAPHICS:
        return vga->graphics_index;
    case GRAPHICS_DATA:
        return REGISTER(vga->graphics, vga->graphics_index);
    }
    return 0xff;
}

static void write_crtc(struct hv_vga *vga, uint8_t value)
{
    if (vga->crtc_index > OVERFLOW || !(vga->crtc[PROTECT] & PROTECT_BIT))
        STORE(vga->crtc, vga->crtc_index, value);
    else if (vga->crtc_index == OVERFLOW)
        vga->crtc[OVERFLOW] = (uint8_t)((vga->crtc[OVERFLOW] & ~LINE_COMPARE_BIT) | (value & LINE_COMPARE_BIT));
}

static void write_byte(struct hv_vga *vga, unsigned port, uint8_t value)
{
    unsigned at = place(vga, port);
    switch (at) {
    case CRTC:
        vga->crtc_index = value;
        break;
    case CRTC_DATA:
        write_crtc(vga, value);
        break;
    case STATUS:
        vga->feature = value;
        break;
    case ATTRIBUTE:
        if (vga->attribute_data_next)
            STORE(vga->attribute, vga->attribute_index & PALETTE_BITS, value);
        else
            vga->attribute_index = value & ATTRIBUTE_BITS;
        vga->attribute_data_next = !vga->attribute_data_next;
        break;
    case STATUS_0_AND_MISC:
        vga->misc = value;
        break;
    case SEQUENCER:
        vga->sequencer_index = value;
        break;
    case SEQUENCER_DATA:
        STORE(vga->sequencer, vga->sequencer_index, value);
        break;
    case PEL_MASK:
        vga->pel_mask = value;
        break;
    case DAC_STATE:
    case DAC_INDEX:
        vga->color_index = value;
        vga->color_component = 0;
        vga->color_reading = at == DAC_STATE;
        break;
    case DAC_DATA:
        *next_color(vga) = value & COLOR_BITS;
        break;
    case GRAPHICS:
        vga->graphics_index = value;
        break;
    case GRAPHICS_DATA:
        STORE(vga->graphics, vga->graphics_index, value);
        break;
    }
}

/* Accesses that are wide, as those of drivers to an index and its data, are split as on the ISA bus. */
static bool here(const struct hv_board *board, uint16_t port, unsigned size)
{
    if (!board->vga->there)
        return false;
    for (uint32_t i = 0; i < size; i++)
        if (!of_vga((uint32_t)port + i))
            return false;
    return true;
}

bool hv_vga_in(struct hv_board *board, uint16_t port, unsigned size, uint32_t *value)
{
    if (!here(board, port, size))
        return false;
    *value = 0;
    for (unsigned i = 0; i < size; i++)
        *value |= (uint32_t)read_byte(board->vga, port + i) << (8 * i);
    return true;
}

bool hv_vga_out(struct hv_board *board, uint16_t port, unsigned size, uint32_t value)
{
    if (!here(board, port, size))
        return false;
    for (unsigned i = 0; i < size; i++)
        write_byte(board->vga, port + i, (uint8_t)(value >> (8 * i)));
    return true;
}

/* Registers as a guest can have left them. */
static void limit(struct hv_vga *vga)
{
    vga->attribute_index &= ATTRIBUTE_BITS;
    vga->status &= STATUS_TOGGLES;
    vga->color_component %= 3;
    vga->attribute_data_next = !!vga->attribute_data_next;
    vga->color_reading = !!vga->color_reading;
    for (size_t i = 0; i < sizeof vga->colors; i++)
        vga->colors[i] &= COLOR_BITS;
}

void hv_vga_take(struct hv_vga *vga, const struct hv_vga *theirs)
{
    struct hv_vga new;
    memcpy(&new, theirs, sizeof new);
    __asm__ volatile("" : : : "memory"); /* the compiler may not look there again */
    if (memcmp(&new, vga, sizeof new) == 0)
        return;
    new.there = vga->there;
    limit(&new);
    *vga = new;
}
