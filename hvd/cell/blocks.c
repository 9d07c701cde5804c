#include "translate.h"
void hv_code_written(uint64_t physical, uint64_t length){(void)physical;(void)length;}
void hv_code_verify(bool all){(void)all;}
void hv_code_verify_page(uint32_t l){(void)l;}
