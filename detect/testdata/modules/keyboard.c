// A notifier of the keyboard, as keyloggers have, in memory that is nobody's.
#include "module.h"

int register_keyboard_notifier(struct notifier_block *nb);
int unregister_keyboard_notifier(struct notifier_block *nb);
static struct notifier_block nb;

static int up(void)
{
	nb.notifier_call = stranger(0);
	return register_keyboard_notifier(&nb);
}

static void down(void)
{
	unregister_keyboard_notifier(&nb);
	forget(nb.notifier_call);
}

MODULE(up, down);
