// A handler of ftrace in memory that is nobody's.
#include "module.h"

int register_ftrace_function(struct ftrace_ops *ops);
int unregister_ftrace_function(struct ftrace_ops *ops);
int ftrace_set_filter(struct ftrace_ops *ops, char *name, int n, int reset);
static struct ftrace_ops ops;
static char traced[] = "__x64_sys_acct";

static int up(void)
{
	int err = ftrace_set_filter(&ops, traced, sizeof traced - 1, 0);

	if (err)
		return err;
	ops.func = stranger(0);
	return register_ftrace_function(&ops);
}

static void down(void)
{
	unregister_ftrace_function(&ops);
	forget(ops.func);
}

MODULE(up, down);
