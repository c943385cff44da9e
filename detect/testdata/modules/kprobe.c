// A handler of a kprobe in memory that is nobody's.
#include "module.h"

int register_kprobe(struct kprobe *p);
void unregister_kprobe(struct kprobe *p);
static struct kprobe probe;

static int up(void)
{
	probe.addr = (void *)sys_call_table[ACCT];
	probe.pre_handler = stranger(0);
	return register_kprobe(&probe);
}

static void down(void)
{
	unregister_kprobe(&probe);
	forget(probe.pre_handler);
}

MODULE(up, down);
