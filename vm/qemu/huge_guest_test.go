package qemu

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"vmscope/internal/procram"
	"vmscope/mem"
	"vmscope/vm"
	"vmscope/vm/vmtest"
)

// TestHugePages: RAM of huge pages, of which one is 2 MiB of the host's memory, is read by each route, and what the guest has not
// used stays unused.
func TestHugePages(t *testing.T) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	_, free, _ := strings.Cut(string(b), "HugePages_Free:")
	if n, _ := strconv.Atoi(strings.Fields(free + " 0")[0]); n < 32 || !strings.Contains(string(b), "Hugepagesize:       2048 kB") {
		t.Skip("needs 32 free huge pages of 2 MiB (sysctl vm.nr_hugepages=32)")
	}
	for share, routes := range map[string][]Route{"on": {Mmap, VMRead}, "off": {VMRead}} {
		t.Run("share "+share, func(t *testing.T) { testHugePages(t, share, routes) })
	}
}

func testHugePages(t *testing.T, share string, routes []Route) {
	v := start(t, "-S", "-m", "64M", "-machine", "q35,memory-backend=m", "-object", "memory-backend-memfd,id=m,size=64M,hugetlb=on,hugetlbsize=2M,share="+share)
	used := func() int64 {
		t.Helper()
		maps, err := procram.Mappings(v.pid)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range maps {
			if m.Size() != 64<<20 || !m.Memfd() {
				continue
			}
			f, err := procram.Block{HVA: m.Start, Size: m.Size(), Mapping: m}.Open(v.pid, false)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			st, err := f.Stat()
			if err != nil {
				t.Fatal(err)
			}
			return st.Sys().(*syscall.Stat_t).Blocks * 512
		}
		t.Fatal("no RAM is mapped")
		return 0
	}
	before := used()
	for _, r := range routes {
		t.Run(string(r), func(t *testing.T) {
			vmtest.Run(t, func(t *testing.T) vm.Machine { return openVM(t, v.name, Force(r)) }, vmtest.Want{
				Ranges: []mem.Range{{Start: 0, Size: 64 << 20}}, CPUs: 1, Bytes: map[mem.PA][]byte{patternAt: v.data},
			})
			if now := used(); now != before {
				t.Errorf("the RAM's file went from %d to %d KiB", before>>10, now>>10)
			}
		})
	}
}
