/* National Semiconductor PC16550D. It transmits at infinite speed and receives as fast as the guest reads, so that no baud rate
 * needs to be modelled: the character timeout of the receive FIFO is due at once. */
#include "board.h"

#include <string.h>

enum { RBR_THR_DLL, IER_DLM, IIR_FCR, LCR, MCR, LSR, MSR, SCR };
enum { IER_RDA = 1, IER_THRE = 2, IER_LINE = 4, IER_MODEM = 8 };
enum { IIR_MODEM = 0, IIR_NONE = 1, IIR_THRE = 2, IIR_RDA = 4, IIR_LINE = 6, IIR_TIMEOUT = 12, IIR_FIFOS = 0xc0 };
enum { FCR_ENABLE = 1, FCR_CLEAR_RX = 2 };
enum { LCR_DLAB = 0x80 };
enum { MCR_LOOP = 0x10 };
enum { LSR_DR = 1, LSR_OE = 2, LSR_THRE = 0x20, LSR_TEMT = 0x40 };
enum { MSR_DELTAS = 0x0f, MSR_TERI = 4, MSR_RI = 0x40, MSR_CONNECTED = 0xb0 /* DCD, DSR, CTS */ };

static const uint8_t trigger_level[4] = {1, 4, 8, 14};

static unsigned capacity(const struct hv_uart *uart)
{
    return uart->fcr & FCR_ENABLE ? HV_UART_FIFO : 1;
}

static uint8_t interrupt_id(const struct hv_uart *uart)
{
    if (uart->ier & IER_LINE && uart->lsr & LSR_OE)
        return IIR_LINE;
    if (uart->ier & IER_RDA && uart->rx_count) {
        if (!(uart->fcr & FCR_ENABLE) || uart->rx_count >= trigger_level[uart->fcr >> 6])
            return IIR_RDA;
        return IIR_TIMEOUT;
    }
    if (uart->ier & IER_THRE && uart->iir_thri)
        return IIR_THRE;
    if (uart->ier & IER_MODEM && uart->msr & MSR_DELTAS)
        return IIR_MODEM;
    return IIR_NONE;
}

bool hv_uart_irq(const struct hv_uart *uart)
{
    /* A PC gates the interrupt with OUT2. QEMU does not, and kernels that grew up there (xv6) leave it off; the others set it. In loopback
     * mode the pin is inactive, and drivers that play with it expect no interrupt. */
    return !(uart->mcr & MCR_LOOP) && interrupt_id(uart) != IIR_NONE;
}

void hv_uart_reset(struct hv_uart *uart)
{
    uint64_t tx = uart->tx_bytes, rx = uart->rx_bytes;
    memset(uart, 0, sizeof *uart);
    uart->msr = MSR_CONNECTED;
    uart->divisor = 1; /* 115200 baud, what firmware sets up */
    uart->lcr = 3;     /* 8n1 */
    uart->tx_bytes = tx;
    uart->rx_bytes = rx;
}

/* Does the guest look for input: by interrupt, or by reading LSR again and again without sending? What is typed earlier waits at the
 * other end of the line; otherwise a driver that empties the FIFO when it starts, as most do, would throw it away. */
static bool listening(const struct hv_uart *uart)
{
    return uart->ier & IER_RDA || uart->polls >= HV_UART_POLLS;
}

bool hv_uart_can_receive(const struct hv_uart *uart)
{
    return !(uart->mcr & MCR_LOOP) && listening(uart) && uart->rx_count < capacity(uart);
}

static void push(struct hv_uart *uart, uint8_t byte)
{
    if (uart->rx_count < capacity(uart)) {
        uart->rx[(uart->rx_head + uart->rx_count) % HV_UART_FIFO] = byte;
        uart->rx_count++;
        return;
    }
    uart->lsr |= LSR_OE;
    uart->rx_overrun++;
    if (!(uart->fcr & FCR_ENABLE)) /* the FIFO keeps what it has; the single register is overwritten */
        uart->rx[uart->rx_head % HV_UART_FIFO] = byte;
}

void hv_uart_receive(struct hv_uart *uart, uint8_t byte)
{
    uart->rx_bytes++;
    push(uart, byte);
}

static uint8_t pop(struct hv_uart *uart)
{
    if (!uart->rx_count)
        return 0;
    uint8_t byte = uart->rx[uart->rx_head];
    uart->rx_head = (uart->rx_head + 1) % HV_UART_FIFO;
    uart->rx_count--;
    return byte;
}

static void set_mcr(struct hv_uart *uart, uint8_t value)
{
    uart->mcr = value & 0x1f;
    uint8_t lines = MSR_CONNECTED;
    if (uart->mcr & MCR_LOOP) /* RTS -> CTS, DTR -> DSR, OUT1 -> RI, OUT2 -> DCD */
        lines = (uint8_t)((uart->mcr & 2) << 3 | (uart->mcr & 1) << 5 | (uart->mcr & 4) << 4 | (uart->mcr & 8) << 4);
    uint8_t changed = (uart->msr ^ lines) & 0xf0;
    uint8_t deltas = changed >> 4 & (uint8_t)~MSR_TERI;
    if (uart->msr & MSR_RI && !(lines & MSR_RI))
        deltas |= MSR_TERI; /* only the trailing edge of RI counts */
    uart->msr = (uint8_t)(lines | (uart->msr & MSR_DELTAS) | deltas);
}

static void set_fcr(struct hv_uart *uart, uint8_t value)
{
    if ((value ^ uart->fcr) & FCR_ENABLE || value & FCR_CLEAR_RX)
        uart->rx_count = uart->rx_head = 0;
    uart->fcr = value & FCR_ENABLE ? value & (uint8_t)0xc9 : 0;
}

uint8_t hv_uart_read(struct hv_uart *uart, unsigned reg)
{
    uint8_t value;

    switch (reg & 7) {
    case RBR_THR_DLL:
        return uart->lcr & LCR_DLAB ? (uint8_t)uart->divisor : pop(uart);
    case IER_DLM:
        return uart->lcr & LCR_DLAB ? (uint8_t)(uart->divisor >> 8) : uart->ier;
    case IIR_FCR:
        value = interrupt_id(uart);
        if (value == IIR_THRE)
            uart->iir_thri = 0;
        return uart->fcr & FCR_ENABLE ? value | IIR_FIFOS : value;
    case LCR:
        return uart->lcr;
    case MCR:
        return uart->mcr;
    case LSR:
        if (uart->polls < HV_UART_POLLS)
            uart->polls++;
        value = LSR_THRE | LSR_TEMT | uart->lsr | (uart->rx_count ? LSR_DR : 0);
        uart->lsr &= (uint8_t)~LSR_OE;
        return value;
    case MSR:
        value = uart->msr;
        uart->msr &= (uint8_t)~MSR_DELTAS;
        return value;
    default:
        return uart->scr;
    }
}

bool hv_uart_transmits(const struct hv_uart *uart, unsigned reg)
{
    return (reg & 7) == RBR_THR_DLL && !(uart->lcr & LCR_DLAB) && !(uart->mcr & MCR_LOOP);
}

int hv_uart_write(struct hv_uart *uart, unsigned reg, uint8_t value)
{
    switch (reg & 7) {
    case RBR_THR_DLL:
        if (uart->lcr & LCR_DLAB) {
            uart->divisor = (uint16_t)((uart->divisor & 0xff00) | value);
            break;
        }
        uart->polls = uart->polls < HV_UART_POLLS ? 0 : HV_UART_POLLS; /* it looked for room, not for input; once seen to look, it is */
        uart->iir_thri = 1; /* sent already, the register is empty again */
        if (uart->mcr & MCR_LOOP) {
            push(uart, value);
            break;
        }
        uart->tx_bytes++;
        return value;
    case IER_DLM:
        if (uart->lcr & LCR_DLAB) {
            uart->divisor = (uint16_t)((uart->divisor & 0xff) | value << 8);
            break;
        }
        if (value & IER_THRE && !(uart->ier & IER_THRE))
            uart->iir_thri = 1; /* enabling it while the register is empty, as it always is here, raises it */
        uart->ier = value & 0x0f;
        break;
    case IIR_FCR:
        set_fcr(uart, value);
        break;
    case LCR:
        uart->lcr = value;
        break;
    case MCR:
        set_mcr(uart, value);
        break;
    case LSR: /* read-only; the factory test mode is not for guests */
    case MSR:
        break;
    default:
        uart->scr = value;
        break;
    }
    return -1;
}
