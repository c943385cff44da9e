// The floor: what reading a guest's memory costs at least. Maps a raw RAM file
// and walks its page tables by hand, without cache, without bounds checks,
// without caring about holes or errors: it trusts the guest.
//
//	floor FILE LOW ROOT LEVELS ADDRS MILLISECONDS
//
// LOW: bytes of the file that lie below 4 GiB in guest-physical space (the rest
// begins at 4 GiB). ADDRS: a file of little-endian 8-byte virtual addresses, all
// mapped, on page boundaries. MILLISECONDS: for each row. Prints lines of a row's
// name and its nanoseconds.
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
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1e9 + t.tv_nsec;
}

static uint64_t *addr, naddr;
static uint64_t hot, start;
static volatile uint64_t sink;
static char page[4096] __attribute__((aligned(4096)));

static void walk_hot(uint64_t i) { (void)i; sink += walk(hot); }
static void u64_hot(uint64_t i) { (void)i; sink += load(walk(hot)); }
static void u64_random(uint64_t i)
{
	uint64_t va = addr[i % naddr];
	sink += load(walk(va + (va >> 9 & 0xff8)));
}
static void page_copy(uint64_t va)
{
	memcpy(page, phys(walk(va)), sizeof page);
	__asm__ volatile("" :: "r"(page) : "memory");
}
static void page_hot(uint64_t i) { (void)i; page_copy(hot); }
static void page_random(uint64_t i) { page_copy(addr[i % naddr]); }

// measure calls f for about the given time and prints the mean.
static inline __attribute__((always_inline)) void measure(const char *row, void (*f)(uint64_t), double ns)
{
	double t0 = now(), t;
	uint64_t n = 0;
	do {
		for (int k = 0; k < 1000; k++)
			f(start + n++);
		t = now() - t0;
	} while (t < ns);
	printf("%s %.2f\n", row, t / n);
}

static char *map(const char *name, uint64_t *size)
{
	struct stat st;
	int fd = open(name, O_RDONLY);
	if (fd < 0 || fstat(fd, &st)) {
		perror(name);
		exit(1);
	}
	char *p = mmap(0, st.st_size, PROT_READ, MAP_SHARED, fd, 0);
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
	double slice = atof(argv[6]) * 1e6;
	start = now(); // random reads begin elsewhere in each run
	measure("walk", walk_hot, slice);
	measure("u64-hot", u64_hot, slice);
	measure("u64-random", u64_random, slice);
	measure("page-hot", page_hot, slice);
	measure("page-random", page_random, slice);
	return 0;
}
