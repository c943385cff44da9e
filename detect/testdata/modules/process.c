// A process that is not in the list of processes.
#include "module.h"

static struct task_struct *hidden;

static int up(void)
{
	hidden = task("sleeper");
	if (!hidden)
		return -3; // ESRCH
	list_del(&hidden->tasks);
	return 0;
}

static void down(void) { list_add(&hidden->tasks, init_task.tasks.prev); }

MODULE(up, down);
