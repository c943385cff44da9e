// The SYSCALL instruction leads through code of the module.
#include "module.h"

enum { LSTAR = 0xc0000082 };

u64 kernel_entry __attribute__((used)); // where it led before

// Nothing of the kernel's is there yet but the page tables: no stack, no GS base.
__asm__(".globl passage\npassage: jmp *kernel_entry(%rip)\n");
void passage(void);

static void lead(u64 to) { __asm__ volatile("wrmsr" ::"c"(LSTAR), "a"((u32)to), "d"((u32)(to >> 32)) : "memory"); }

static int up(void)
{
	u32 low, high;

	__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(LSTAR));
	kernel_entry = (u64)high << 32 | low;
	lead((u64)passage);
	return 0;
}

static void down(void) { lead(kernel_entry); }

MODULE(up, down);
