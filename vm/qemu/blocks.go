package qemu

import (
	"cmp"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"vmscope/internal/procram"

	"golang.org/x/sys/unix"
)

// block is a run of guest RAM in the address space of its QEMU.
type block struct {
	procram.Block
	id string // of the memory backend; "" if not known
}

func newBlock(hva, size uint64, m procram.Mapping) block {
	return block{Block: procram.Block{HVA: hva, Size: size, Mapping: m}}
}

// errNoBlock says that no mapping looks like the RAM.
var errNoBlock = errors.New("guest RAM not found among the mappings of the process")

// maxRAM is what processors can address at most, bytes.
const maxRAM = 1 << 52

// findBlocks tells which mappings are main memory, in the order of its bytes.
// sure is false if another mapping would have fitted as well.
func findBlocks(pid int, c *config, maps []procram.Mapping) (blocks []block, sure bool, err error) {
	want := c.backends
	if len(want) == 0 {
		b := backend{size: c.ram, typ: "ram"}
		if b.size == 0 {
			b.size = 128 << 20 // QEMU's default
		}
		if c.memPath != "" {
			b.typ, b.path = "file", c.memPath
		}
		want = []backend{b}
	}
	// The order in which backends were made tells those of the same kind apart.
	order := make([]int, len(want))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(a, b int) int { return cmp.Compare(want[a].made, want[b].made) })
	used := map[uint64]bool{}
	sure = true
	blocks = make([]block, len(want))
	for n, i := range order {
		w := want[i]
		if w.size == 0 || w.size > maxRAM {
			return nil, false, fmt.Errorf("%w: memory backend %q of %d bytes", errNoBlock, w.id, w.size)
		}
		cand := candidates(pid, w, maps)
		cand = slices.DeleteFunc(cand, func(b block) bool { return used[b.HVA] })
		if len(cand) == 0 {
			return nil, false, fmt.Errorf("%w: none of %d MiB for backend %q (%s)", errNoBlock, w.size>>20, w.id, w.typ)
		}
		if len(cand) > 1 {
			sure = false
			alike := 0
			for _, k := range order[n:] {
				if want[k].typ == w.typ && want[k].size == w.size {
					alike++
				}
			}
			cand = best(pid, w, cand, alike)
		}
		blocks[i] = cand[0]
		blocks[i].id = w.id
		used[cand[0].HVA] = true
	}
	return blocks, sure, nil
}

// candidates lists the mappings that may be backend w.
func candidates(pid int, w backend, maps []procram.Mapping) []block {
	size := (w.size + 4095) &^ 4095
	var named, exact, within []block
	ino, dev := identity(pid, w.path)
	for _, v := range maps {
		if v.Size() < size || !fits(w, v) {
			continue
		}
		// QEMU aligns RAM at its start and puts an inaccessible guard page
		// behind it (util/mmap-alloc.c), so what the kernel joined to it lies
		// before it.
		tail := newBlock(v.End-size, size, v)
		switch {
		case !v.Anonymous() && ino != 0 && v.Inode == ino && (dev == v.Dev || strings.HasSuffix(v.Path, filepath.Base(w.path))):
			if v.Off != w.off { // another backend in the same file
				continue
			}
			named = append(named, newBlock(v.Start, size, v))
		case !v.Anonymous() && strings.Contains(v.Path, "/qemu_back_mem."+w.id+"."):
			named = append(named, newBlock(v.Start, size, v))
		case !v.Anonymous():
			if v.Size() == size {
				exact = append(exact, tail)
			}
		case slices.Contains(v.Cuts, tail.HVA):
			exact = append(exact, tail)
		case tail.HVA%(2<<20) == 0:
			within = append(within, tail)
		}
	}
	switch {
	case len(named) > 0:
		return named
	case len(exact) > 0:
		return exact
	}
	return within
}

// fits tells whether a mapping is of the kind that the backend makes.
func fits(w backend, v procram.Mapping) bool {
	switch w.typ {
	case "file":
		return !v.Anonymous() && !v.Memfd()
	case "memfd":
		return v.Memfd()
	case "ram":
		// share=on gives an unlinked file of the kernel's own.
		return v.Anonymous() || strings.HasPrefix(v.Path, "/dev/zero") || strings.HasPrefix(v.Path, "/anon_hugepage")
	}
	return true
}

// identity gives inode and device of a path as the process sees it.
func identity(pid int, path string) (ino uint64, dev string) {
	if path == "" {
		return 0, ""
	}
	base := fmt.Sprintf("/proc/%d/", pid)
	full := base + "root" + path
	if !filepath.IsAbs(path) {
		full = base + "cwd/" + path
	}
	var st unix.Stat_t
	if unix.Stat(full, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return 0, ""
	}
	return st.Ino, procram.Device(&st)
}

// best sorts candidates for a backend, of which alike ones are still to be
// found, the likeliest first: memfds in the order in which they were made; of
// anonymous memory that of which most is in use, the highest first, for the
// kernel places mappings downwards.
func best(pid int, w backend, cand []block, alike int) []block {
	if w.typ == "memfd" {
		slices.SortFunc(cand, func(a, b block) int { return cmp.Compare(a.Mapping.Inode, b.Mapping.Inode) })
		return cand
	}
	use := map[uint64]uint64{}
	for _, b := range cand {
		spans, _ := procram.Touched(pid, b.HVA, b.Size)
		for _, s := range spans {
			use[b.HVA] += s.Size
		}
	}
	slices.SortStableFunc(cand, func(a, b block) int { return cmp.Compare(use[b.HVA], use[a.HVA]) })
	cand = cand[:min(alike, len(cand))]
	slices.SortFunc(cand, func(a, b block) int { return cmp.Compare(b.HVA, a.HVA) })
	return cand
}
