// A function of the kernel that begins with a jump into the module.
#include "module.h"

static u64 own;

static long acct(void) { return -1; }

static int up(void)
{
	u8 *entry = (u8 *)sys_call_table[ACCT];

	own = *(u64 *)entry;
	put(entry, own >> 40 << 40 | (u64)(u32)((u8 *)acct - entry - 5) << 8 | 0xe9);
	return 0;
}

static void down(void) { put((void *)sys_call_table[ACCT], own); }

MODULE(up, down);
