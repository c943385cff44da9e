/* A kernel in small: types of each kind, and where the compiler has them. */
#define offsetof(t, m) __builtin_offsetof(t, m)

typedef unsigned int u32;
typedef signed char s8;
#include "list.h"
struct elsewhere;
enum state { RUNNING, STOPPED = 4, DEAD = -1 };
enum big { HUGE_VALUE = 1ULL << 40 };

union value { long number; void *pointer; char bytes[24]; };

struct packed { char c; u32 word; short s; } __attribute__((packed));

struct task_struct {
	volatile long state;
	struct list_head tasks;
	const char *const name;
	char comm[16];
	int grid[3][5];
	union {
		struct { u32 low, high; };
		union value value;
	};
	struct { s8 x, y; } point;
	u32 first : 3, second : 7, : 6, third : 16;
	unsigned long wide : 40;
	_Bool flag;
	enum state exit;
	enum big big;
	struct elsewhere *other;
	struct task_struct *(*get)(struct task_struct *, int, ...);
	double load;
	struct packed packed;
	char rest[];
};

#define T(m) offsetof(struct task_struct, m)
/* As the compiler has them: the test reads these out of the file. */
const unsigned long want[] = {
	sizeof(struct task_struct), sizeof(struct packed), sizeof(union value),
	T(state), T(tasks), T(tasks.prev), T(name), T(comm), T(grid), T(grid[2][4]), T(low), T(high), T(value),
	T(point.y), T(flag), T(exit), T(big), T(other), T(get), T(load), T(packed), T(packed.word), T(packed.s), T(rest),
};

struct task_struct init_task = { .first = 5, .second = 0x55, .third = 0xabcd, .wide = 0x123456789aULL };
const char linux_banner[] = "Linux version 0.0.1-small (nobody@nowhere) #1\n";
static int hidden = 3;
static int (*volatile reader)(void);
static int peek(void) { return hidden; }
int _stext(void) { reader = peek; return reader() + (int)init_task.exit; }
