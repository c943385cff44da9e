// A probe of a tracepoint in memory that is nobody's.
#include "module.h"

int tracepoint_probe_register(void *tp, void *probe, void *data);
int tracepoint_probe_unregister(void *tp, void *probe, void *data);
extern char __tracepoint_sched_process_exec[];
static void *probe;

// A single probe is called by a branch that leads 2 GiB far at most: so this is
// the other one.
static void near(void) {}

static int up(void)
{
	int err = tracepoint_probe_register(__tracepoint_sched_process_exec, near, 0);

	if (err)
		return err;
	probe = stranger(0);
	return tracepoint_probe_register(__tracepoint_sched_process_exec, probe, 0);
}

static void down(void)
{
	tracepoint_probe_unregister(__tracepoint_sched_process_exec, probe, 0);
	tracepoint_probe_unregister(__tracepoint_sched_process_exec, near, 0);
	forget(probe);
}

MODULE(up, down);
