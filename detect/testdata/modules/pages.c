// Code in a page that is nobody's.
#include "module.h"

static void *page;

static int up(void)
{
	page = stranger(0x1337);
	return 0;
}

static void down(void) { forget(page); }

MODULE(up, down);
