// A process that is in no list, nor a child of anybody, and has no id: one that
// runs, or the VICTIM, which sleeps.
#include "module.h"

#ifndef VICTIM
#define VICTIM "spinner"
#endif

void *idr_replace(void *idr, void *to, u64 id);
extern struct pid_namespace init_pid_ns;
static struct task_struct *hidden;
static void *id;

static int up(void)
{
	hidden = task(VICTIM);
	if (!hidden)
		return -3; // ESRCH
	list_del(&hidden->tasks);
	list_del(&hidden->sibling);
	id = idr_replace(&init_pid_ns.idr, 0, hidden->pid);
	return 0;
}

static void down(void)
{
	idr_replace(&init_pid_ns.idr, id, hidden->pid);
	list_add(&hidden->sibling, &hidden->real_parent->children);
	list_add(&hidden->tasks, init_task.tasks.prev);
}

MODULE(up, down);
