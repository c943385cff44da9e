// The SYSCALL instruction leads through code of the module, and so does what
// programs of 32 bits use.
#include "module.h"

static const u32 registers[] = {0xc0000082, 0xc0000083, 0x176}; // LSTAR, CSTAR, SYSENTER_EIP
u64 own[3] __attribute__((used));                               // where they led before

// Nothing of the kernel's is there yet but the page tables: no stack, no GS base.
// The guest has no programs of 32 bits.
__asm__(".globl passage\npassage: jmp *own(%rip)\n");
void passage(void);

static void lead(u32 reg, u64 to) { __asm__ volatile("wrmsr" ::"c"(reg), "a"((u32)to), "d"((u32)(to >> 32)) : "memory"); }

static int up(void)
{
	for (int i = 0; i < 3; i++) {
		u32 low, high;

		__asm__ volatile("rdmsr" : "=a"(low), "=d"(high) : "c"(registers[i]));
		own[i] = (u64)high << 32 | low;
	}
	for (int i = 0; i < 3; i++)
		lead(registers[i], (u64)passage);
	return 0;
}

static void down(void)
{
	for (int i = 0; i < 3; i++)
		lead(registers[i], own[i]);
}

MODULE(up, down);
