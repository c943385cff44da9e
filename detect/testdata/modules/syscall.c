// The usual hook of a system call: its slot in the table.
#include "module.h"

static u64 own;

static long acct(void) { return -1; }

static int up(void)
{
	own = sys_call_table[ACCT];
	put(&sys_call_table[ACCT], (u64)acct);
	return 0;
}

static void down(void) { put(&sys_call_table[ACCT], own); }

MODULE(up, down);
