// A packet filter in memory that is nobody's: it sees all packets that come in.
#include "module.h"

int nf_register_net_hook(void *net, struct nf_hook_ops *ops);
void nf_unregister_net_hook(void *net, struct nf_hook_ops *ops);
extern char init_net[];
static struct nf_hook_ops ops = {.pf = 2 /* IPv4 */, .hooknum = 1 /* local in */};

static int up(void)
{
	ops.hook = stranger(1 /* accept */);
	return nf_register_net_hook(init_net, &ops);
}

static void down(void)
{
	nf_unregister_net_hook(init_net, &ops);
	forget(ops.hook);
}

MODULE(up, down);
