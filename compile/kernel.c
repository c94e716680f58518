#define _GNU_SOURCE
int coppice_kernel_abi(void);
__attribute__((visibility("default"))) int coppice_kernel_abi(void) { return 0; }
