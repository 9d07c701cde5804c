/* Lines of an assembler file, their statements and sections; what is put out for a sensitive one. The number of lines stays. */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "filter.h"

/* Pages of code that are there for thunks, once in each linked image. */
#define AREA_PAGES 2
#define STATEMENTS 16384 /* of one line: what the preprocessor makes of a macro */

struct section {
    char name[120]; /* a longer one is cut */
    bool executable;
};

static struct {
    struct section current, previous, stack[64][2];
    unsigned depth;
    struct section known[512];
    unsigned known_count;
    bool other_width, intel, comment, prefix, macro_operation;
    unsigned sites;
} state;

static bool equals(struct span s, const char *text)
{
    return s.length == strlen(text) && !memcmp(s.at, text, s.length);
}

static bool contains(struct span s, const char *text)
{
    return memmem(s.at, s.length, text, strlen(text)) != NULL;
}

static struct span skip_blanks(struct span s)
{
    while (s.length && isspace((unsigned char)*s.at))
        s.at++, s.length--;
    while (s.length && isspace((unsigned char)s.at[s.length - 1]))
        s.length--;
    return s;
}

/* ---- sections */

static struct section section_named(struct span arguments)
{
    const char *end = arguments.at + arguments.length;
    const char *comma = memchr(arguments.at, ',', arguments.length);
    struct span name = skip_blanks((struct span){arguments.at, (size_t)((comma ? comma : end) - arguments.at)});
    if (name.length >= 2 && *name.at == '"')
        name.at++, name.length -= 2;
    struct section section = {.executable = contains(name, "text") || equals(name, ".init") || equals(name, ".fini")};
    memcpy(section.name, name.at, name.length < sizeof section.name - 1 ? name.length : sizeof section.name - 1);
    unsigned i = 0;
    while (i < state.known_count && strcmp(state.known[i].name, section.name))
        i++;
    if (i < state.known_count)
        section = state.known[i];
    const char *flags = comma ? memchr(comma, '"', (size_t)(end - comma)) : NULL;
    const char *behind = flags ? memchr(flags + 1, '"', (size_t)(end - flags - 1)) : NULL;
    if (behind) {
        section.executable = memchr(flags, 'x', (size_t)(behind - flags)) != NULL;
        if (i < sizeof state.known / sizeof *state.known) {
            state.known[i] = section;
            state.known_count += i == state.known_count;
        }
    }
    return section;
}

static void change_section(struct section to)
{
    state.previous = state.current;
    state.current = to;
}

static void directive(struct span name, struct span arguments)
{
    if (equals(name, ".section"))
        change_section(section_named(arguments));
    else if (equals(name, ".text") || equals(name, ".data") || equals(name, ".bss"))
        change_section(section_named(name));
    else if (equals(name, ".pushsection")) {
        if (state.depth < sizeof state.stack / sizeof *state.stack) {
            state.stack[state.depth][0] = state.current;
            state.stack[state.depth][1] = state.previous;
        }
        state.depth++;
        change_section(section_named(arguments));
    } else if (equals(name, ".popsection") && state.depth) {
        state.depth--;
        if (state.depth < sizeof state.stack / sizeof *state.stack) {
            state.current = state.stack[state.depth][0];
            state.previous = state.stack[state.depth][1];
        }
    } else if (equals(name, ".previous"))
        change_section(state.previous);
    else if (equals(name, ".code16") || equals(name, ".code16gcc") || equals(name, ".code64"))
        state.other_width = true;
    else if (equals(name, ".code32"))
        state.other_width = false;
    else if (equals(name, ".intel_syntax"))
        state.intel = true;
    else if (equals(name, ".att_syntax"))
        state.intel = false;
}

/* Code that runs where it stands, in 32-bit mode. Linux's alternatives are copied elsewhere. */
static bool replaceable(void)
{
    return !state.other_width && state.current.executable && !strstr(state.current.name, "altinstr_replacement");
}

/* ---- what is put out */

static bool part_of_name(char c) { return isalnum((unsigned char)c) || strchr("_.$", c) != NULL; }

/* Is SS loaded? As an operand, not as the prefix of one, nor within a name; or by LSS. */
static bool loads_ss(struct span s)
{
    for (size_t i = 0; i + 1 < s.length; i++) {
        if (tolower((unsigned char)s.at[i]) != 's' || tolower((unsigned char)s.at[i + 1]) != 's')
            continue;
        char before = i ? s.at[i - 1] : ' ', behind = i + 2 < s.length ? s.at[i + 2] : ' ';
        bool lss = tolower((unsigned char)before) == 'l' && (i < 2 || isspace((unsigned char)s.at[i - 2])) && (isspace((unsigned char)behind) || strchr("lwLW", behind));
        if (lss || (i && !part_of_name(before) && !part_of_name(behind) && behind != ':'))
            return true;
    }
    return false;
}

/* Bytes that the replacement needs: a call, or, of CLI, the store of a byte. What loads SS stays as it is: the next instruction, which loads
 * ESP, must follow. */
static unsigned room(struct span statement, enum hv_site_kind kind)
{
    bool loads = kind == HV_SITE_LOAD_FAR || kind == HV_SITE_MOV_TO_SEGMENT || kind == HV_SITE_POP_SEGMENT;
    if (loads && loads_ss(statement))
        return 0;
    return kind == HV_SITE_CLI ? 8 : 5;
}

static void put_site(struct buffer *out, struct span statement, enum hv_site_kind kind)
{
    unsigned least = room(statement, kind);
    if (kind == HV_SITE_STI)
        /* Padding goes before it, so that the next instruction still is in its shadow: `sti; hlt`. */
        append_format(out, "7701: .fill %u,1,0x90; 7702: sti; 7703: 7704: ", least - 1);
    else {
        append_format(out, "7701: 7702: %.*s; 7703: ", (int)statement.length, statement.at);
        if (least)
            append_format(out, ".fill -((7703b-7702b)<%u)*(%u-(7703b-7702b)),1,0x90; ", least, least);
        append_format(out, "7704: ");
    }
    append_format(out, ".pushsection .hvpv.sites,\"?\",@progbits; .long 7701b; .byte %u,7704b-7701b,7703b-7702b,7702b-7701b; .popsection", kind);
    state.sites++;
}

/* `\op`: the mnemonic is a macro's argument. This macro compares it. */
static void put_operation_macro(struct buffer *out)
{
    static const char *const names[] = {"cli", "sti", "pushf", "pushfl", "popf", "popfl", "iret", "hlt", "clts", "rdmsr", "wrmsr", "rdtsc", "rdtscp",
                                        "rdpmc", "cpuid", "invd", "wbinvd"};
    append_format(out, ".macro hvpv_operation text:vararg\n");
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct span name = {names[i], strlen(names[i])};
        append_format(out, ".ifc \"\\text\",\"%s\"\n", names[i]);
        put_site(out, name, classify(name, false));
        append_format(out, "\n.exitm\n.endif\n");
    }
    append_format(out, "\\text\n.endm\n");
}

/* Once in an image, however many objects bring it. A call of its beginning in an image that is not replaced gives -ENOSYS. */
static void put_area(struct buffer *out)
{
    append_format(out,
                  "\n.section .text,\"axG\",@progbits,hvpv_area,comdat\n.weak hvpv_area\n.hidden hvpv_area\n.type hvpv_area,@function\n"
                  ".balign 4096,0x90\nhvpv_area: .byte 0xb8; .long -38; ret\n.fill %u*4096-6,1,0xcc\n.size hvpv_area,.-hvpv_area\n"
                  ".pushsection .hvpv.sites,\"?\",@progbits; .long hvpv_area; .byte %u,%u,0,0; .popsection\n",
                  AREA_PAGES, HV_SITE_AREA, AREA_PAGES);
}

/* ---- statements */

struct statement {
    struct span labels, body;
};

/* Length of the labels at the beginning. */
static size_t labels(struct span s)
{
    size_t behind = 0, at = 0;
    for (;;) {
        while (at < s.length && isspace((unsigned char)s.at[at]))
            at++;
        size_t name = at;
        if (at < s.length && s.at[at] == '"') {
            const char *quote = memchr(s.at + at + 1, '"', s.length - at - 1);
            at = quote ? (size_t)(quote + 1 - s.at) : s.length;
        } else
            while (at < s.length && (isalnum((unsigned char)s.at[at]) || strchr("._$\\@", s.at[at])))
                at++;
        if (at == name)
            return behind;
        while (at < s.length && isspace((unsigned char)s.at[at]))
            at++;
        if (at == s.length || s.at[at] != ':')
            return behind;
        behind = ++at;
    }
}

/* The statements of a line, comments removed, their text in clean. */
static unsigned split(struct span line, struct buffer *clean, struct statement *statements)
{
    static size_t ends[STATEMENTS];
    unsigned count = 0;
    bool quoted = false;
    clean->used = 0;
    for (const char *at = line.at, *end = at + line.length; at < end; at++) {
        bool next = at + 1 < end;
        if (state.comment) {
            if (*at == '*' && next && at[1] == '/')
                state.comment = false, at++;
        } else if (quoted) {
            append(clean, at, 1);
            if (*at == '\\' && next)
                append(clean, ++at, 1);
            else
                quoted = *at != '"';
        } else if (*at == '#')
            break;
        else if (*at == '/' && next && at[1] == '*') {
            state.comment = true, at++;
            append(clean, " ", 1);
        } else if (*at == ';') {
            if (count == STATEMENTS - 1)
                give_up("a line has too many statements");
            ends[count++] = clean->used;
        } else {
            quoted = *at == '"';
            append(clean, at, 1);
        }
    }
    ends[count++] = clean->used;
    for (unsigned i = 0; i < count; i++) {
        size_t begin = i ? ends[i - 1] : 0;
        struct span whole = {clean->data + begin, ends[i] - begin};
        size_t label = labels(whole);
        statements[i].labels = (struct span){whole.at, label};
        statements[i].body = skip_blanks((struct span){whole.at + label, whole.length - label});
    }
    return count;
}

/* `\op`: nothing but a macro's argument. Not those with which Linux's ALTERNATIVE macros are called: text with quotes. */
static bool macro_argument(struct span s)
{
    if (s.length < 2 || *s.at != '\\' || contains(s, "oldinstr") || contains(s, "newinstr"))
        return false;
    for (size_t i = 1; i < s.length; i++)
        if (!isalnum((unsigned char)s.at[i]) && s.at[i] != '_')
            return false;
    return true;
}

/* Put out the statement, or what stands for it. Returns the number of statements that were used: `rep; insb` is one instruction. */
static unsigned put_statement(struct buffer *out, const struct statement *at, const struct statement *end, bool *changed)
{
    struct span body = at->body;
    bool prefixed = state.prefix;
    append(out, at->labels.at, at->labels.length);
    append(out, " ", 1);
    if (!body.length)
        return 1;
    state.prefix = false;
    if (*body.at == '.') {
        struct span name = {body.at, 0};
        while (name.length < body.length && !isspace((unsigned char)body.at[name.length]))
            name.length++;
        directive(name, skip_blanks((struct span){body.at + name.length, body.length - name.length}));
    }
    if (replaceable()) {
        if (lone_prefix(body)) {
            const struct statement *next = at + 1;
            enum hv_site_kind kind = next < end && !next->labels.length ? classify(next->body, state.intel) : HV_SITE_NONE;
            if (kind != HV_SITE_NONE && !prefixed) {
                char text[256];
                int length = snprintf(text, sizeof text, "%.*s; %.*s", (int)body.length, body.at, (int)next->body.length, next->body.at);
                if (length > 0 && (size_t)length < sizeof text) {
                    put_site(out, (struct span){text, (size_t)length}, kind);
                    *changed = true;
                    return 2;
                }
            }
            /* Alone on its line it belongs to the next one, which then is left as it is. */
            state.prefix = true;
        } else if (macro_argument(body)) {
            append_format(out, "hvpv_operation %.*s", (int)body.length, body.at);
            state.macro_operation = *changed = true;
            return 1;
        } else if (!prefixed) {
            enum hv_site_kind kind = classify(body, state.intel);
            if (kind != HV_SITE_NONE) {
                put_site(out, body, kind);
                *changed = true;
                return 1;
            }
        }
    }
    append(out, body.at, body.length);
    return 1;
}

bool rewrite(struct span text, struct buffer *out)
{
    struct buffer clean = {0}, line_out = {0};
    state.current = state.previous = (struct section){".text", true};
    for (const char *at = text.at, *end = at + text.length; at < end;) {
        const char *newline = memchr(at, '\n', (size_t)(end - at));
        struct span line = {at, (size_t)((newline ? newline : end) - at)};
        static struct statement statements[STATEMENTS];
        bool changed = false, in_comment = state.comment;
        unsigned count = split(line, &clean, statements);
        line_out.used = 0;
        /* What is put out has no comments: those that reach beyond this line end and begin here. */
        if (in_comment)
            append(&line_out, "*/", 2);
        for (unsigned i = 0; i < count;) {
            if (i)
                append(&line_out, ";", 1);
            i += put_statement(&line_out, statements + i, statements + count, &changed);
        }
        if (state.comment)
            append(&line_out, "/*", 2);
        if (changed)
            append(out, line_out.data, line_out.used);
        else
            append(out, line.at, line.length);
        append(out, "\n", 1);
        at += line.length + 1;
    }
    free(clean.data);
    free(line_out.data);
    if (state.macro_operation) {
        struct buffer whole = {0};
        put_operation_macro(&whole);
        append(&whole, out->data, out->used);
        free(out->data);
        *out = whole;
    }
    if (state.sites)
        put_area(out);
    return state.sites != 0;
}
