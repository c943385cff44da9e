// A live patch, the kernel's own way to replace a function, that is led to memory
// that is nobody's.
#define INFO "\0livepatch=Y"
#include "module.h"

int klp_enable_patch(struct klp_patch *patch);

static long acct(void) { return -1; }

static struct klp_func functions[2] = {{.old_name = "__x64_sys_acct", .new_func = acct}};
static struct klp_object objects[2] = {{.funcs = functions}}; // of the kernel itself
static struct klp_patch patch = {.mod = &__this_module, .objs = objects};

static int up(void)
{
	int err = klp_enable_patch(&patch);

	if (!err)
		functions[0].new_func = stranger(0); // the kernel refuses to enable one that leads there
	return err;
}

static void down(void) { forget(functions[0].new_func); }

MODULE(up, down);
