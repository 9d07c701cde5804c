/* `as`, as gcc calls it: hvpvcc's directory comes first for gcc -B. The real one is $HVPVCC_AS, or `as` on $PATH. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <regex.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "filter.h"

static _Noreturn void die(const char *what)
{
    fprintf(stderr, "hvpvcc: %s: %s\n", what, strerror(errno));
    exit(1);
}

void give_up(const char *why)
{
    fprintf(stderr, "hvpvcc: %s\n", why);
    exit(1);
}

void append(struct buffer *buffer, const char *bytes, size_t length)
{
    if (buffer->used + length > buffer->room) {
        buffer->room = 2 * (buffer->used + length) + 4096;
        buffer->data = realloc(buffer->data, buffer->room);
        if (!buffer->data)
            die("memory");
    }
    if (length)
        memcpy(buffer->data + buffer->used, bytes, length);
    buffer->used += length;
}

void append_format(struct buffer *buffer, const char *format, ...)
{
    char text[2048];
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= sizeof text) {
        errno = E2BIG;
        die("a statement");
    }
    append(buffer, text, (size_t)length);
}

static void read_all(int fd, struct buffer *out)
{
    char chunk[65536];
    ssize_t got;
    while ((got = read(fd, chunk, sizeof chunk)) > 0)
        append(out, chunk, (size_t)got);
    if (got < 0)
        die("read");
}

static _Noreturn void assemble(char **arguments)
{
    const char *name = getenv("HVPVCC_AS");
    arguments[0] = name ? (char *)(uintptr_t)name : "as";
    execvp(arguments[0], arguments);
    die(arguments[0]);
}

/* Options whose value is the next argument. */
static bool takes_value(const char *option)
{
    static const char *const options[] = {"-o", "-I", "--MD", "-MD", "--defsym", "--debug-prefix-map", "-march", "-mtune"};
    for (size_t i = 0; i < sizeof options / sizeof *options; i++)
        if (!strcmp(option, options[i]))
            return true;
    return false;
}

/* $HVPVCC_SKIP, an extended regular expression, names the outputs (absolute paths) that do not run as guest kernel. */
static bool skipped(const char *output)
{
    const char *pattern = getenv("HVPVCC_SKIP");
    if (!pattern || !*pattern)
        return false;
    char path[2 * PATH_MAX], directory[PATH_MAX];
    if (*output == '/' || !getcwd(directory, sizeof directory))
        snprintf(path, sizeof path, "%s", output);
    else
        snprintf(path, sizeof path, "%s/%s", directory, output);
    regex_t expression;
    int error = regcomp(&expression, pattern, REG_EXTENDED | REG_NOSUB);
    if (error) {
        char text[200];
        regerror(error, &expression, text, sizeof text);
        fprintf(stderr, "hvpvcc: HVPVCC_SKIP: %s\n", text);
        exit(1);
    }
    bool matches = !regexec(&expression, path, 0, NULL, 0);
    regfree(&expression);
    return matches;
}

int main(int count, char **arguments)
{
    const char *output = NULL;
    int input = 0, inputs = 0;
    for (int i = 1; i < count; i++) {
        const char *a = arguments[i];
        /* Sixty-four-bit code has no sites; what is asked for may be no object at all. */
        if (!strcmp(a, "--64") || !strcmp(a, "--x32") || !strcmp(a, "--version") || !strcmp(a, "--help"))
            assemble(arguments);
        if (!strcmp(a, "-o") && i + 1 < count)
            output = arguments[i + 1];
        if (takes_value(a))
            i++;
        else if (*a != '-' || !a[1])
            input = i, inputs++;
    }
    if (!output || inputs > 1 || skipped(output))
        assemble(arguments);
    bool piped = !inputs || !strcmp(arguments[input], "-");
    int fd = piped ? STDIN_FILENO : open(arguments[input], O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        die(arguments[input]);
    struct buffer text = {0}, result = {0};
    read_all(fd, &text);
    bool changed = rewrite((struct span){text.data, text.used}, &result);
    if (!changed && !piped)
        assemble(arguments);
    const struct buffer *source = changed ? &result : &text;
    int memory = memfd_create("hvpvcc", 0);
    if (memory < 0)
        die("memfd_create");
    for (size_t done = 0; done < source->used;) {
        ssize_t wrote = write(memory, source->data + done, source->used - done);
        if (wrote < 0)
            die("write");
        done += (size_t)wrote;
    }
    if (lseek(memory, 0, SEEK_SET) < 0 || dup2(memory, STDIN_FILENO) < 0)
        die("memfd");
    if (inputs)
        arguments[input] = "-";
    assemble(arguments);
}
