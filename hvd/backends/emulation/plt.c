/* The library's parts call each other through its procedure linkage table; entries of it are pointed at functions of ours (ELF gABI;
 * System V ABI AMD64, "Procedure Linkage Table"). Once per process, and for one library: what the entries call is kept in globals. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <link.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "shim.h"

#ifdef __x86_64__

static bool point_at(void *handle, struct link_map *map, const ElfW(Rela) *relocation, const struct hv_redirection *redirection)
{
    void **slot = (void **)(map->l_addr + relocation->r_offset);
    uintptr_t page = (uintptr_t)slot & ~(uintptr_t)(sysconf(_SC_PAGESIZE) - 1);
    *redirection->original = dlsym(handle, redirection->name);
    if (!*redirection->original || mprotect((void *)page, (uintptr_t)(slot + 1) - page, PROT_READ | PROT_WRITE) != 0)
        return false;
    *slot = redirection->ours;
    return true;
}

static bool redirect(void *handle, const struct hv_redirection *redirections, size_t count, char *why, size_t why_size)
{
    struct link_map *map;
    if (dlinfo(handle, RTLD_DI_LINKMAP, &map) != 0) {
        snprintf(why, why_size, "dlinfo: %s", dlerror());
        return false;
    }
    const ElfW(Rela) *relocations = NULL;
    const ElfW(Sym) *symbols = NULL;
    const char *strings = NULL;
    size_t bytes = 0;
    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) { /* glibc has added the load address to these pointers */
        if (d->d_tag == DT_JMPREL)
            relocations = (const void *)d->d_un.d_ptr;
        else if (d->d_tag == DT_PLTRELSZ)
            bytes = d->d_un.d_val;
        else if (d->d_tag == DT_SYMTAB)
            symbols = (const void *)d->d_un.d_ptr;
        else if (d->d_tag == DT_STRTAB)
            strings = (const void *)d->d_un.d_ptr;
    }
    size_t redirected = 0;
    for (size_t i = 0; relocations && symbols && strings && i < bytes / sizeof *relocations; i++) {
        if (ELF64_R_TYPE(relocations[i].r_info) != R_X86_64_JUMP_SLOT)
            continue;
        const char *name = strings + symbols[ELF64_R_SYM(relocations[i].r_info)].st_name;
        for (size_t r = 0; r < count; r++) {
            if (strcmp(name, redirections[r].name) != 0)
                continue;
            if (!point_at(handle, map, &relocations[i], &redirections[r])) {
                snprintf(why, why_size, "cannot redirect %s", name);
                return false;
            }
            redirected++;
        }
    }
    if (redirected != count) {
        snprintf(why, why_size, "it calls %zu of %zu functions through its procedure linkage table", redirected, count);
        return false;
    }
    return true;
}

bool hv_plt_redirect(void *handle, char *why, size_t why_size)
{
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static void *redirected; /* the library's handle */
    bool ok = true;
    pthread_mutex_lock(&lock);
    if (!redirected) {
        ok = redirect(handle, hv_code_page_redirections, hv_code_page_redirection_count, why, why_size) &&
             redirect(handle, &hv_flags_redirection, 1, why, why_size) && redirect(handle, &hv_apic_redirection, 1, why, why_size) &&
             redirect(handle, &hv_abort_redirection, 1, why, why_size) &&
             redirect(handle, hv_debug_redirections, hv_debug_redirection_count, why, why_size);
        redirected = ok ? handle : NULL;
    } else if (redirected != handle) {
        snprintf(why, why_size, "the procedure linkage table of another Unicorn in this process is redirected already");
        ok = false;
    }
    pthread_mutex_unlock(&lock);
    return ok;
}
#endif
