// A format of programs that is asked for each one that is started.
#include "module.h"

void __register_binfmt(struct linux_binfmt *format, int first);
void unregister_binfmt(struct linux_binfmt *format);
static struct linux_binfmt format;

static int up(void)
{
	format.load_binary = stranger(-8 /* ENOEXEC: not this one */);
	__register_binfmt(&format, 1);
	return 0;
}

static void down(void)
{
	unregister_binfmt(&format);
	forget(format.load_binary);
}

MODULE(up, down);
