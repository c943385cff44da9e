// A hook in the list of the security modules', where kernels have lists.
#include "module.h"

extern struct security_hook_heads security_hook_heads;
static struct security_hook_list hook;

static int up(void)
{
	void *first = *(void **)&security_hook_heads.quotactl;

	*(void **)&hook.list = first;
	*(void **)&hook.hook = stranger(0);
	put(&security_hook_heads.quotactl, (u64)&hook.list);
	return 0;
}

static void down(void)
{
	put(&security_hook_heads.quotactl, *(u64 *)&hook.list);
	forget(*(void **)&hook.hook);
}

MODULE(up, down);
