/* The assembler filter of hvpvcc (docs/hvpvcc.md): stands where gcc -B looks for `as`, and gives each sensitive instruction of guest
 * kernel code room to be replaced and a record in the section .hvpv.sites. Nothing is replaced here: the code does what it did.
 *
 *   main.c      the arguments of `as`, which objects are left alone, the real assembler
 *   rewrite.c   lines, statements, sections; what is put out for a sensitive one
 *   classify.c  which instructions are sensitive
 */
#ifndef HVPV_FILTER_H
#define HVPV_FILTER_H

#include <stdbool.h>
#include <stddef.h>

#include "../../../guests/include/hv/sites.h"

struct span {
    const char *at;
    size_t length;
};

struct buffer {
    char *data;
    size_t used, room;
};

/* The kind of one statement (labels and comments removed, prefixes included), or HV_SITE_NONE. intel: .intel_syntax. */
enum hv_site_kind classify(struct span statement, bool intel);
/* A statement that is nothing but a prefix: `rep`, `lock`, `data16`... */
bool lone_prefix(struct span statement);

/* text of one assembler file -> out. Returns whether anything was changed; if not, out is of no use. */
bool rewrite(struct span text, struct buffer *out);

_Noreturn void give_up(const char *why);
void append(struct buffer *, const char *bytes, size_t length);
void append_format(struct buffer *, const char *format, ...) __attribute__((format(printf, 2, 3)));

#endif
