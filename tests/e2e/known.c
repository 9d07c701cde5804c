/* Known bytes across two pages, an untouched page, one that may not be read; then it sleeps. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(void)
{
    char *pages = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(pages + 4090, "known bytes across pages");
    char *closed = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    strcpy(closed, "closed");
    mprotect(closed, 4096, PROT_NONE);
    printf("%p %p %p\n", (void *)(pages + 4090), (void *)(pages + 2 * 4096), (void *)closed);
    fflush(stdout);
    pause();
}
