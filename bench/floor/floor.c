// The floor: what reading a guest's memory costs at least. Maps a raw RAM file
// and walks its page tables by hand, without cache, without bounds checks,
// without caring about holes or errors: it trusts the guest.
//
//	floor FILE LOW ROOT LEVELS ADDRS MILLISECONDS
//
// LOW: bytes of the file that lie below 4 GiB in guest-physical space (the rest
// begins at 4 GiB). ADDRS: a file of little-endian 8-byte virtual addresses, all
// mapped, on page boundaries. For each line on stdin, the name of a row, it
// measures that row for so many milliseconds of CPU time and answers with the
// nanoseconds of one operation.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

static char *ram;
static uint64_t low, root;
static int levels;

static inline char *phys(uint64_t pa)
{
	return ram + (pa < low ? pa : pa - (4ull << 30) + low);
}

static inline uint64_t load(uint64_t pa)
{
	return *(volatile uint64_t *)phys(pa);
}

static inline uint64_t walk(uint64_t va)
{
	uint64_t table = root;
	for (int shift = 3 + 9 * levels;; shift -= 9) {
		uint64_t e = load(table + (va >> shift & 511) * 8);
		if (!(e & 1))
			return ~0ull;
		e &= 0xfffffffffffffull;
		if (shift == 12 || e & 0x80) {
			uint64_t in = (1ull << shift) - 1;
			return (e & ~0xfffull & ~in) | (va & in);
		}
		table = e & ~0xfffull;
	}
}

static double now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static uint64_t *addr, naddr, hot;
static volatile uint64_t sink;
static char page[4096] __attribute__((aligned(4096)));
static double slice;

static void copy(uint64_t va)
{
	memcpy(page, phys(walk(va)), sizeof page);
	__asm__ volatile("" ::"r"(page) : "memory");
}

static uint64_t spread(uint64_t va) { return va + (va >> 9 & 0xff8); }

// A row runs its operation, which may use i, its number, and goes on where it
// ended the time before.
#define ROW(name, operation)                                      \
	static double name(void)                                  \
	{                                                         \
		static uint64_t i;                                \
		uint64_t from = i;                                \
		double t0 = now(), t;                             \
		do {                                              \
			for (int k = 0; k < 1000; k++, i++)       \
				operation;                        \
			t = now() - t0;                           \
		} while (t < slice);                              \
		return t / (i - from);                            \
	}

ROW(walk_hot, sink += walk(hot))
ROW(u64_hot, sink += load(walk(hot)))
ROW(u64_random, sink += load(walk(spread(addr[i % naddr]))))
ROW(page_hot, copy(hot))
ROW(page_random, copy(addr[i % naddr]))

static const struct {
	const char *name;
	double (*run)(void);
} rows[] = {
	{"walk\n", walk_hot},
	{"u64-hot\n", u64_hot},
	{"u64-random\n", u64_random},
	{"page-hot\n", page_hot},
	{"page-random\n", page_random},
};

static char *map(const char *name, uint64_t *size)
{
	struct stat st;
	int fd = open(name, O_RDONLY);
	if (fd < 0 || fstat(fd, &st)) {
		perror(name);
		exit(1);
	}
	char *p = mmap(0, st.st_size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
	if (p == MAP_FAILED) {
		perror(name);
		exit(1);
	}
	*size = st.st_size;
	return p;
}

int main(int argc, char **argv)
{
	uint64_t size;
	if (argc != 7) {
		fprintf(stderr, "usage: floor FILE LOW ROOT LEVELS ADDRS MILLISECONDS\n");
		return 2;
	}
	ram = map(argv[1], &size);
	low = strtoull(argv[2], 0, 0);
	root = strtoull(argv[3], 0, 0);
	levels = atoi(argv[4]);
	addr = (uint64_t *)map(argv[5], &naddr);
	naddr /= 8;
	hot = addr[0];
	slice = atof(argv[6]) * 1e6;
	char line[64];
	while (fgets(line, sizeof line, stdin)) {
		double ns = -1;
		for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
			if (!strcmp(line, rows[i].name))
				ns = rows[i].run();
		printf("%.2f\n", ns);
		fflush(stdout);
	}
	return 0;
}
