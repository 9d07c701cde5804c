/* Which instructions are sensitive: privileged ones, and those that behave otherwise in ring 3 without a trap. */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "filter.h"

enum operands { ANY, WITH, WITHOUT }; /* the mnemonic alone decides; only with operands; only without */

static const struct mnemonic {
    const char *name;
    const char *suffixes; /* each may follow the name */
    enum operands operands;
    enum hv_site_kind kind;
} mnemonics[] = {
    {"cli", "", WITHOUT, HV_SITE_CLI},
    {"sti", "", WITHOUT, HV_SITE_STI},
    {"pushf", "lwd", WITHOUT, HV_SITE_PUSHF},
    {"popf", "lwd", WITHOUT, HV_SITE_POPF},
    {"iret", "lwd", WITHOUT, HV_SITE_IRET},
    {"hlt", "", WITHOUT, HV_SITE_HLT},
    {"lgdt", "lwd", WITH, HV_SITE_LGDT},
    {"lidt", "lwd", WITH, HV_SITE_LIDT},
    {"lldt", "lw", WITH, HV_SITE_LLDT},
    {"ltr", "lw", WITH, HV_SITE_LTR},
    {"sgdt", "lwd", WITH, HV_SITE_SGDT},
    {"sidt", "lwd", WITH, HV_SITE_SIDT},
    {"sldt", "lw", WITH, HV_SITE_SLDT},
    {"str", "lw", WITH, HV_SITE_STR},
    {"lmsw", "lw", WITH, HV_SITE_LMSW},
    {"smsw", "lw", WITH, HV_SITE_SMSW},
    {"clts", "", WITHOUT, HV_SITE_CLTS},
    {"rdmsr", "", WITHOUT, HV_SITE_RDMSR},
    {"wrmsr", "", WITHOUT, HV_SITE_WRMSR},
    {"rdtsc", "", WITHOUT, HV_SITE_RDTSC},
    {"rdtscp", "", WITHOUT, HV_SITE_RDTSCP},
    {"rdpmc", "", WITHOUT, HV_SITE_RDPMC},
    {"cpuid", "", WITHOUT, HV_SITE_CPUID},
    {"invlpg", "", WITH, HV_SITE_INVLPG},
    {"invd", "", WITHOUT, HV_SITE_INVD},
    {"wbinvd", "", WITHOUT, HV_SITE_WBINVD},
    {"wbnoinvd", "", WITHOUT, HV_SITE_WBINVD},
    {"invpcid", "", WITH, HV_SITE_INVPCID},
    {"in", "bwl", WITH, HV_SITE_IN},
    {"out", "bwl", WITH, HV_SITE_OUT},
    {"ins", "bwld", ANY, HV_SITE_INS},
    {"outs", "bwld", ANY, HV_SITE_OUTS},
    {"lar", "lw", WITH, HV_SITE_LAR},
    {"lsl", "lw", WITH, HV_SITE_LSL},
    {"verr", "", WITH, HV_SITE_VERR},
    {"verw", "", WITH, HV_SITE_VERW},
    {"ljmp", "lw", WITH, HV_SITE_FAR_JUMP},
    {"lcall", "lw", WITH, HV_SITE_FAR_CALL},
    {"lret", "lw", ANY, HV_SITE_FAR_RETURN},
    {"retf", "", ANY, HV_SITE_FAR_RETURN},
    {"sysexit", "l", WITHOUT, HV_SITE_SYSEXIT},
    {"monitor", "", ANY, HV_SITE_MONITOR},
    {"monitorx", "", ANY, HV_SITE_MONITOR},
    {"mwait", "", ANY, HV_SITE_MWAIT},
    {"mwaitx", "", ANY, HV_SITE_MWAIT},
    {"xgetbv", "", WITHOUT, HV_SITE_XGETBV},
    {"xsetbv", "", WITHOUT, HV_SITE_XSETBV},
    {"lds", "lw", WITH, HV_SITE_LOAD_FAR},
    {"les", "lw", WITH, HV_SITE_LOAD_FAR},
    {"lfs", "lw", WITH, HV_SITE_LOAD_FAR},
    {"lgs", "lw", WITH, HV_SITE_LOAD_FAR},
    {"lss", "lw", WITH, HV_SITE_LOAD_FAR},
    {"vmcall", "", WITHOUT, HV_SITE_VM},
    {"vmmcall", "", WITHOUT, HV_SITE_VM},
    {"clac", "", WITHOUT, HV_SITE_ACCESS_FLAG},
    {"stac", "", WITHOUT, HV_SITE_ACCESS_FLAG},
};

/* Instructions that a source writes as bytes, for assemblers that did not know them. */
static const struct {
    unsigned char length, bytes[3];
    enum hv_site_kind kind;
} encodings[] = {
    {1, {0xfa}, HV_SITE_CLI},
    {1, {0xfb}, HV_SITE_STI},
    {1, {0x9c}, HV_SITE_PUSHF},
    {1, {0x9d}, HV_SITE_POPF},
    {1, {0xf4}, HV_SITE_HLT},
    {1, {0xcf}, HV_SITE_IRET},
    {2, {0x0f, 0x06}, HV_SITE_CLTS},
    {2, {0x0f, 0x09}, HV_SITE_WBINVD},
    {2, {0x0f, 0x30}, HV_SITE_WRMSR},
    {2, {0x0f, 0x31}, HV_SITE_RDTSC},
    {2, {0x0f, 0x32}, HV_SITE_RDMSR},
    {2, {0x0f, 0xa2}, HV_SITE_CPUID},
    {3, {0x0f, 0x01, 0xc1}, HV_SITE_VM},
    {3, {0x0f, 0x01, 0xc8}, HV_SITE_MONITOR},
    {3, {0x0f, 0x01, 0xc9}, HV_SITE_MWAIT},
    {3, {0x0f, 0x01, 0xca}, HV_SITE_ACCESS_FLAG},
    {3, {0x0f, 0x01, 0xcb}, HV_SITE_ACCESS_FLAG},
    {3, {0x0f, 0x01, 0xd0}, HV_SITE_XGETBV},
    {3, {0x0f, 0x01, 0xd1}, HV_SITE_XSETBV},
    {3, {0x0f, 0x01, 0xd9}, HV_SITE_VM},
    {3, {0x0f, 0x01, 0xf9}, HV_SITE_RDTSCP},
    {3, {0x0f, 0x01, 0xfa}, HV_SITE_MONITOR},
    {3, {0x0f, 0x01, 0xfb}, HV_SITE_MWAIT},
};

#define COUNT(array) (sizeof(array) / sizeof *(array))

static bool blank(char c)
{
    return c == ' ' || c == '\t' || c == '\r';
}

static struct span trimmed(struct span s)
{
    while (s.length && blank(*s.at))
        s.at++, s.length--;
    while (s.length && blank(s.at[s.length - 1]))
        s.length--;
    return s;
}

/* The first word, in lower case; s moves behind it and the blanks that follow. */
static size_t word(struct span *s, char *out, size_t room)
{
    size_t length = 0;
    while (length < s->length && !blank(s->at[length]))
        length++;
    size_t kept = length < room - 1 ? length : room - 1;
    for (size_t i = 0; i < kept; i++)
        out[i] = (char)tolower((unsigned char)s->at[i]);
    out[kept] = 0;
    s->at += length;
    s->length -= length;
    *s = trimmed(*s);
    return length;
}

static bool prefix(const char *name)
{
    static const char *const prefixes[] = {"rep", "repe", "repz", "repne", "repnz", "lock", "data16", "data32", "addr16", "addr32",
                                           "cs", "ds", "es", "fs", "gs", "ss"};
    for (size_t i = 0; i < COUNT(prefixes); i++)
        if (!strcmp(name, prefixes[i]))
            return true;
    return false;
}

bool lone_prefix(struct span statement)
{
    char name[16];
    statement = trimmed(statement);
    return word(&statement, name, sizeof name) && !statement.length && prefix(name);
}

enum special { ORDINARY, CONTROL, DEBUG, SEGMENT };

static enum special special(struct span operand, bool intel)
{
    operand = trimmed(operand);
    if (operand.length && *operand.at == '%')
        operand.at++, operand.length--;
    else if (!intel)
        return ORDINARY;
    char name[4];
    if (operand.length < 2 || operand.length > 3)
        return ORDINARY;
    for (size_t i = 0; i <= operand.length; i++)
        name[i] = i < operand.length ? (char)tolower((unsigned char)operand.at[i]) : 0;
    if (operand.length == 2)
        return name[1] == 's' && name[0] >= 'c' && name[0] <= 's' && strchr("cdefgs", name[0]) ? SEGMENT : ORDINARY;
    if (name[2] < '0' || name[2] > '8')
        return ORDINARY;
    if (name[0] == 'c' && name[1] == 'r')
        return CONTROL;
    return name[0] == 'd' && (name[1] == 'r' || name[1] == 'b') ? DEBUG : ORDINARY;
}

/* MOV, PUSH, POP: sensitive by their operands. */
static enum hv_site_kind by_operands(const char *name, struct span operands, bool intel)
{
    static const enum hv_site_kind kinds[][2] = {
        [CONTROL] = {HV_SITE_MOV_FROM_CR, HV_SITE_MOV_TO_CR},
        [DEBUG] = {HV_SITE_MOV_FROM_DR, HV_SITE_MOV_TO_DR},
        [SEGMENT] = {HV_SITE_MOV_FROM_SEGMENT, HV_SITE_MOV_TO_SEGMENT},
    };
    size_t comma = 0, depth = 0;
    for (; comma < operands.length && !(operands.at[comma] == ',' && !depth); comma++) {
        depth += strchr("([", operands.at[comma]) != NULL;
        depth -= depth && strchr(")]", operands.at[comma]) != NULL;
    }
    if (!strncmp(name, "mov", 3) && (!name[3] || (strchr("wl", name[3]) && !name[4]))) {
        if (comma == operands.length)
            return HV_SITE_NONE;
        struct span first = {operands.at, comma}, second = {operands.at + comma + 1, operands.length - comma - 1};
        struct span from = intel ? second : first, to = intel ? first : second;
        enum special source = special(from, intel), target = special(to, intel);
        return source ? kinds[source][0] : target ? kinds[target][1] : HV_SITE_NONE;
    }
    bool push = !strncmp(name, "push", 4), pop = !strncmp(name, "pop", 3);
    const char *suffix = name + (push ? 4 : 3);
    if ((push || pop) && (!*suffix || (strchr("wl", *suffix) && !suffix[1])) && special(operands, intel) == SEGMENT)
        return push ? HV_SITE_PUSH_SEGMENT : HV_SITE_POP_SEGMENT;
    if (intel && (!strcmp(name, "jmp") || !strcmp(name, "call"))) {
        char far[8];
        word(&operands, far, sizeof far);
        if (!strcmp(far, "far") || !strcmp(far, "fword"))
            return *name == 'j' ? HV_SITE_FAR_JUMP : HV_SITE_FAR_CALL;
    }
    return HV_SITE_NONE;
}

static enum hv_site_kind by_bytes(struct span values)
{
    unsigned char bytes[3];
    unsigned count = 0;
    char text[64];
    if (!values.length || values.length >= sizeof text)
        return HV_SITE_NONE;
    memcpy(text, values.at, values.length);
    text[values.length] = 0;
    for (char *at = text;; at++) {
        char *end;
        unsigned long value = strtoul(at, &end, 0);
        if (end == at || value > 255 || count == sizeof bytes)
            return HV_SITE_NONE;
        bytes[count++] = (unsigned char)value;
        at = end + strspn(end, " \t");
        if (!*at)
            break;
        if (*at != ',')
            return HV_SITE_NONE;
    }
    for (size_t i = 0; i < COUNT(encodings); i++)
        if (encodings[i].length == count && !memcmp(encodings[i].bytes, bytes, count))
            return encodings[i].kind;
    return HV_SITE_NONE;
}

enum hv_site_kind classify(struct span statement, bool intel)
{
    char name[16];
    statement = trimmed(statement);
    do
        word(&statement, name, sizeof name);
    while (statement.length && prefix(name));
    if (*name == '.')
        return strcmp(name, ".byte") ? HV_SITE_NONE : by_bytes(statement);
    for (size_t i = 0; i < COUNT(mnemonics); i++) {
        const struct mnemonic *m = &mnemonics[i];
        size_t length = strlen(m->name);
        if (strncmp(name, m->name, length) || (m->operands != ANY && (m->operands == WITH) != (statement.length != 0)))
            continue;
        const char *suffix = name + length;
        if (!*suffix || (strchr(m->suffixes, *suffix) && !suffix[1]))
            return m->kind;
    }
    return by_operands(name, statement, intel);
}
