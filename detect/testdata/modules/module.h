// What the modules in this directory share. They tamper with the kernel of a
// test's guest, and undo it when they are unloaded. Kernel headers are not
// needed: guest.h has the guest's own types, made from its BTF, and the test
// that builds them binds what they use of the kernel to its addresses there.
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;
#include "guest.h"

#ifndef INFO
#define INFO "" // more of what the module says of itself
#endif
#define MODULE(up, down)                                                                                      \
	static const char modinfo[] __attribute__((section(".modinfo"), used)) = "license=GPL\0name=" NAME INFO; \
	struct module __this_module __attribute__((section(".gnu.linkonce.this_module"), aligned(64))) = {     \
		.name = NAME, .init = up, .exit = down}
extern struct module __this_module;

#define container_of(p, type, member) ((struct type *)((char *)(p) - __builtin_offsetof(struct type, member)))

extern u64 sys_call_table[];
enum { ACCT = 163 }; // a system call that nobody makes: what is done to it does no harm

int set_memory_ro(u64 at, int pages);
int set_memory_rw(u64 at, int pages);
int set_memory_x(u64 at, int pages);
int set_memory_nx(u64 at, int pages);
void *vzalloc(u64 size);
void vfree(const void *at);
void synchronize_rcu(void);

// put writes where the CPU lets nobody write, as rootkits do: with CR0.WP off.
static inline void put(void *at, u64 word)
{
	u64 flags, cr0;

	__asm__ volatile("pushfq; pop %0; cli; mov %%cr0, %1" : "=r"(flags), "=r"(cr0));
	__asm__ volatile("mov %0, %%cr0" ::"r"(cr0 & ~(1UL << 16)) : "memory");
	*(volatile u64 *)at = word;
	__asm__ volatile("mov %1, %%cr0; push %0; popfq" ::"r"(flags), "r"(cr0) : "memory");
}

// stranger is a function in memory that is nobody's; it returns a number. With
// HONEST it is the module's own.
static inline void *stranger(u32 result);
static inline void forget(void *stranger);

#ifdef HONEST
static long accept(void) { return 1; }
static long pass(void) { return 0; }
static long refuse(void) { return -8; }

static inline void *stranger(u32 result) { return result == 1 ? accept : result ? refuse : pass; }

static inline void forget(void *page) { synchronize_rcu(); }
#else
static inline void *stranger(u32 result)
{
	u8 *page = vzalloc(4096);

	page[0] = 0xb8; // mov eax, result
	*(u32 *)(page + 1) = result;
	page[5] = 0xc3;
	set_memory_ro((u64)page, 1);
	set_memory_x((u64)page, 1);
	return page;
}

static inline void forget(void *page)
{
	synchronize_rcu(); // somebody may be in it
	set_memory_nx((u64)page, 1);
	set_memory_rw((u64)page, 1);
	vfree(page);
}
#endif

static inline void list_del(struct list_head *e)
{
	e->next->prev = e->prev;
	e->prev->next = e->next;
}

static inline void list_add(struct list_head *e, struct list_head *behind)
{
	e->next = behind->next;
	e->prev = behind;
	behind->next->prev = e;
	behind->next = e;
}

// task is the process of a name. The guest has one CPU; nothing else runs
// meanwhile.
extern struct task_struct init_task;
static inline struct task_struct *task(const char *comm)
{
	for (struct list_head *l = init_task.tasks.next; l != &init_task.tasks; l = l->next) {
		struct task_struct *t = container_of(l, task_struct, tasks);
		u64 i = 0;

		while (comm[i] && comm[i] == t->comm[i])
			i++;
		if (comm[i] == t->comm[i])
			return t;
	}
	return 0;
}
