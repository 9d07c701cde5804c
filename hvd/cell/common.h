/* A fast way for the most frequent instructions (common.c). */
#ifndef HV_COMMON_H
#define HV_COMMON_H

#include "pieces.h"

/* From t->next, whose code is at t->bytes, at most so many of them, within the page; up to the first that is not one, or the block's end (t->ends). */
void hv_translate_common(struct hv_translation *t, unsigned most);

#endif
