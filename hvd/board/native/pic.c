/* Two cascaded Intel 8259A. Section names are those of the data sheet (order number 231468).
 *
 * An edge-triggered request lives only as long as its line is high ("the IR input must remain high until after the falling edge of
 * the first INTA"): one that goes away earlier gives the spurious IRQ 7 (master) or 15 (slave). Devices hold their line until they
 * are served. The level/edge choice is per input (ELCR) as in PC chipsets, which ignore ICW1.LTIM.
 */
#include "board.h"

#include <string.h>

#define MASTER 0
#define SLAVE 1
#define CASCADE 2 /* the master's input that the slave drives */

static unsigned rank_of(const struct hv_pic_chip *chip, unsigned input)
{
    return (input - chip->lowest_priority - 1u) & 7; /* 0 is the highest priority */
}

/* The input of highest priority in the set, -1 if it is empty. */
static int highest(const struct hv_pic_chip *chip, uint8_t set)
{
    if (!set)
        return -1;
    unsigned input = (chip->lowest_priority + 1u) & 7;
    while (!(set >> input & 1))
        input = (input + 1) & 7;
    return (int)input;
}

/* Which input would be served now, -1 none: priority resolution, with the masks and what is in service (Fully Nested, Special Fully
 * Nested and Special Mask Mode). */
static int request(const struct hv_pic_chip *chip, bool master)
{
    int input = highest(chip, chip->irr & (uint8_t)~chip->imr);
    if (input < 0 || chip->init_step)
        return -1;
    int busy = highest(chip, chip->special_mask ? chip->isr & (uint8_t)~chip->imr : chip->isr);
    if (busy < 0 || rank_of(chip, (unsigned)input) < rank_of(chip, (unsigned)busy))
        return input;
    return master && chip->special_fully_nested && input == CASCADE && busy == CASCADE ? input : -1;
}

static void chip_set_line(struct hv_pic_chip *chip, unsigned input, bool level)
{
    uint8_t bit = (uint8_t)(1u << input);
    if (!level) {
        chip->lines &= (uint8_t)~bit;
        chip->irr &= (uint8_t)~bit;
    } else {
        if (chip->elcr & bit || !(chip->lines & bit))
            chip->irr |= bit;
        chip->lines |= bit;
    }
}

static void refresh_cascade(struct hv_pic *pic)
{
    chip_set_line(&pic->chip[MASTER], CASCADE, request(&pic->chip[SLAVE], false) >= 0);
}

static void chip_acknowledge(struct hv_pic_chip *chip, unsigned input)
{
    uint8_t bit = (uint8_t)(1u << input);
    if (!(chip->elcr & bit))
        chip->irr &= (uint8_t)~bit;
    if (!chip->auto_eoi)
        chip->isr |= bit;
    else if (chip->rotate_on_auto_eoi)
        chip->lowest_priority = (uint8_t)input;
}

void hv_pic_reset(struct hv_pic *pic)
{
    /* The chip has no reset pin. This is how firmware leaves it: everything masked, the IBM PC's vectors. */
    for (int i = 0; i < 2; i++)
        pic->chip[i] = (struct hv_pic_chip){.imr = 0xff, .vector_base = i ? 0x70 : 0x08, .lowest_priority = 7};
}

void hv_pic_set_line(struct hv_pic *pic, unsigned irq, bool level)
{
    if (irq > 15 || irq == CASCADE)
        return;
    chip_set_line(&pic->chip[irq >> 3], irq & 7, level);
    if (irq >= 8)
        refresh_cascade(pic);
}

bool hv_pic_pending(const struct hv_pic *pic)
{
    return request(&pic->chip[MASTER], true) >= 0;
}

int hv_pic_peek(const struct hv_pic *pic)
{
    int input = request(&pic->chip[MASTER], true);
    if (input < 0)
        return -1;
    if (input != CASCADE)
        return pic->chip[MASTER].vector_base | input;
    input = request(&pic->chip[SLAVE], false);
    return pic->chip[SLAVE].vector_base | (input < 0 ? 7 : input);
}

uint8_t hv_pic_acknowledge(struct hv_pic *pic)
{
    int input = request(&pic->chip[MASTER], true);
    if (input < 0)
        return pic->chip[MASTER].vector_base | 7;
    chip_acknowledge(&pic->chip[MASTER], (unsigned)input);
    if (input != CASCADE)
        return pic->chip[MASTER].vector_base | (uint8_t)input;
    struct hv_pic_chip *slave = &pic->chip[SLAVE];
    input = request(slave, false);
    if (input < 0)
        return slave->vector_base | 7;
    chip_acknowledge(slave, (unsigned)input);
    /* INT falls with INTA; if the slave has more to say, it rises again: a new edge. */
    chip_set_line(&pic->chip[MASTER], CASCADE, false);
    refresh_cascade(pic);
    return slave->vector_base | (uint8_t)input;
}

static void icw1(struct hv_pic_chip *chip, uint8_t value)
{
    chip->irr = chip->lines & chip->elcr; /* the edge sense circuit is reset, levels are still there */
    chip->isr = chip->imr = 0;
    chip->lowest_priority = 7;
    chip->special_mask = chip->poll = chip->read_isr = 0;
    chip->auto_eoi = chip->rotate_on_auto_eoi = chip->special_fully_nested = 0;
    chip->icw4_needed = value & 1;
    chip->single = value >> 1 & 1;
    chip->init_step = 2;
}

static void ocw2(struct hv_pic_chip *chip, uint8_t value)
{
    bool rotate = value & 0x80, specific = value & 0x40, eoi = value & 0x20;
    int input = value & 7;

    if (!eoi) {
        if (specific && rotate)
            chip->lowest_priority = (uint8_t)input; /* Set Priority Command */
        else if (!specific)
            chip->rotate_on_auto_eoi = rotate;
        return; /* specific alone: no operation */
    }
    if (!specific) {
        /* In Special Mask Mode a masked IS bit is not cleared by a non-specific EOI. */
        input = highest(chip, chip->special_mask ? chip->isr & (uint8_t)~chip->imr : chip->isr);
        if (input < 0)
            return;
    }
    chip->isr &= (uint8_t)~(1u << input);
    if (rotate)
        chip->lowest_priority = (uint8_t)input;
}

static void ocw3(struct hv_pic_chip *chip, uint8_t value)
{
    chip->poll = value >> 2 & 1;
    if (value & 2)
        chip->read_isr = value & 1;
    if (value & 0x40)
        chip->special_mask = value >> 5 & 1;
}

static void write_data(struct hv_pic_chip *chip, uint8_t value)
{
    switch (chip->init_step) {
    case 0:
        chip->imr = value;
        break;
    case 2:
        chip->vector_base = value & 0xf8;
        chip->init_step = !chip->single ? 3 : chip->icw4_needed ? 4 : 0;
        break;
    case 3: /* the cascade is wired, whatever ICW3 says */
        chip->init_step = chip->icw4_needed ? 4 : 0;
        break;
    case 4:
        chip->auto_eoi = value >> 1 & 1;
        chip->special_fully_nested = value >> 4 & 1;
        chip->init_step = 0;
        break;
    }
}

static void write_elcr(struct hv_pic_chip *chip, uint8_t value)
{
    uint8_t changed = chip->elcr ^ value;
    chip->elcr = value;
    chip->irr = (uint8_t)((chip->irr & ~changed) | (chip->lines & value));
}

void hv_pic_write(struct hv_pic *pic, uint16_t port, uint8_t value)
{
    struct hv_pic_chip *chip = &pic->chip[port >> 7 & 1];

    switch (port) {
    case 0x20:
    case 0xa0:
        if (value & 0x10)
            icw1(chip, value);
        else if (value & 0x08)
            ocw3(chip, value);
        else
            ocw2(chip, value);
        break;
    case 0x21:
    case 0xa1:
        write_data(chip, value);
        break;
    case 0x4d0: /* inputs 0-2 of the master, 0 and 5 of the slave are always edge-triggered */
        write_elcr(&pic->chip[MASTER], value & 0xf8);
        break;
    case 0x4d1:
        write_elcr(&pic->chip[SLAVE], value & 0xde);
        break;
    }
    refresh_cascade(pic);
}

uint8_t hv_pic_read(struct hv_pic *pic, uint16_t port)
{
    if (port == 0x4d0 || port == 0x4d1)
        return pic->chip[port & 1].elcr;
    bool slave = port & 0x80;
    struct hv_pic_chip *chip = &pic->chip[slave];
    if (chip->poll) { /* Poll Command: this read is the INTA */
        chip->poll = 0;
        int input = request(chip, !slave);
        if (input < 0)
            return 0;
        chip_acknowledge(chip, (unsigned)input);
        if (slave)
            chip_set_line(&pic->chip[MASTER], CASCADE, false);
        refresh_cascade(pic);
        return 0x80 | (uint8_t)input;
    }
    if (port & 1)
        return chip->imr;
    return chip->read_isr ? chip->isr : chip->irr;
}
