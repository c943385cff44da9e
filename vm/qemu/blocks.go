package qemu

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// block is a run of guest RAM in the address space of its QEMU.
type block struct {
	id   string // of the memory backend; "" if not known
	hva  uint64 // host-virtual address in QEMU
	size uint64
	vma  vma
}

// off is where the block starts in its file.
func (b block) off() uint64 { return b.vma.off + b.hva - b.vma.start }

// errNoBlock says that no mapping looks like the RAM.
var errNoBlock = errors.New("guest RAM not found among the mappings of the process")

// maxRAM is what processors can address at most, bytes.
const maxRAM = 1 << 52

// findBlocks tells which mappings are main memory, in the order of its bytes.
// sure is false if another mapping would have fitted as well.
func findBlocks(pid int, c *config, maps []vma) (blocks []block, sure bool, err error) {
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
		cand = slices.DeleteFunc(cand, func(b block) bool { return used[b.hva] })
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
		used[cand[0].hva] = true
	}
	return blocks, sure, nil
}

// candidates lists the mappings that may be backend w.
func candidates(pid int, w backend, maps []vma) []block {
	size := (w.size + 4095) &^ 4095
	var named, exact, within []block
	ino, dev := identity(pid, w.path)
	for _, v := range maps {
		if v.size() < size || !fits(w, v) {
			continue
		}
		// QEMU aligns RAM at its start and puts an inaccessible guard page
		// behind it (util/mmap-alloc.c), so what the kernel joined to it lies
		// before it.
		tail := block{hva: v.end - size, size: size, vma: v}
		switch {
		case !v.anon() && ino != 0 && v.inode == ino && (dev == v.dev || strings.HasSuffix(v.path, filepath.Base(w.path))):
			if v.off != w.off { // another backend in the same file
				continue
			}
			named = append(named, block{hva: v.start, size: size, vma: v})
		case !v.anon() && strings.Contains(v.path, "/qemu_back_mem."+w.id+"."):
			named = append(named, block{hva: v.start, size: size, vma: v})
		case !v.anon():
			if v.size() == size {
				exact = append(exact, tail)
			}
		case slices.Contains(v.cuts, tail.hva):
			exact = append(exact, tail)
		case tail.hva%(2<<20) == 0:
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
func fits(w backend, v vma) bool {
	switch w.typ {
	case "file":
		return !v.anon() && !v.memfd()
	case "memfd":
		return v.memfd()
	case "ram":
		// share=on gives an unlinked file of the kernel's own.
		return v.anon() || strings.HasPrefix(v.path, "/dev/zero") || strings.HasPrefix(v.path, "/anon_hugepage")
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
	return st.Ino, device(&st)
}

// best sorts candidates for a backend, of which alike ones are still to be
// found, the likeliest first: memfds in the order in which they were made; of
// anonymous memory that of which most is in use, the highest first, for the
// kernel places mappings downwards.
func best(pid int, w backend, cand []block, alike int) []block {
	if w.typ == "memfd" {
		slices.SortFunc(cand, func(a, b block) int { return cmp.Compare(a.vma.inode, b.vma.inode) })
		return cand
	}
	use := map[uint64]uint64{}
	for _, b := range cand {
		spans, _ := pagemapSpans(pid, b.hva, b.size)
		for _, s := range spans {
			use[b.hva] += s.size
		}
	}
	slices.SortStableFunc(cand, func(a, b block) int { return cmp.Compare(use[b.hva], use[a.hva]) })
	cand = cand[:min(alike, len(cand))]
	slices.SortFunc(cand, func(a, b block) int { return cmp.Compare(b.hva, a.hva) })
	return cand
}

// open opens the file behind a block: through a descriptor of the process, by
// its mapping, or by its path.
func (b block) open(pid int, writable bool) (*os.File, error) {
	flag := os.O_RDONLY
	if writable {
		flag = os.O_RDWR
	}
	var first error
	try := func(path string) *os.File {
		f, err := os.OpenFile(path, flag, 0)
		if err != nil {
			if first == nil {
				first = err
			}
			return nil
		}
		if b.is(f) {
			return f
		}
		f.Close()
		return nil
	}
	dir := fmt.Sprintf("/proc/%d/fd", pid)
	fds, err := os.ReadDir(dir)
	if err != nil {
		first = err
	}
	for _, e := range fds {
		p := dir + "/" + e.Name()
		var st unix.Stat_t
		if unix.Stat(p, &st) != nil || st.Ino != b.vma.inode || st.Mode&unix.S_IFMT != unix.S_IFREG {
			continue
		}
		if f := try(p); f != nil {
			return f, nil
		}
	}
	last := b.vma.end
	if len(b.vma.cuts) > 1 {
		last = b.vma.cuts[1]
	}
	if f := try(fmt.Sprintf("/proc/%d/map_files/%x-%x", pid, b.vma.start, last)); f != nil {
		return f, nil
	}
	if strings.HasPrefix(b.vma.path, "/") && !b.vma.memfd() {
		if f := try(fmt.Sprintf("/proc/%d/root%s", pid, b.vma.path)); f != nil {
			return f, nil
		}
	}
	if first == nil {
		first = os.ErrNotExist
	}
	return nil, fmt.Errorf("open the file behind guest RAM, %q: %w", b.vma.path, first)
}

// is makes sure that f is the file that the process has mapped, and not, say, a
// disk image of the same number on another file system. Where mappings and files
// tell different devices (btrfs, overlayfs), their names must agree.
func (b block) is(f *os.File) bool {
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Ino != b.vma.inode || st.Mode&unix.S_IFMT != unix.S_IFREG ||
		uint64(st.Size) < b.off()+b.size {
		return false
	}
	name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	return device(&st) == b.vma.dev || err == nil && name == b.vma.path
}

// device is a file's device as /proc/PID/maps writes it.
func device(st *unix.Stat_t) string {
	return fmt.Sprintf("%02x:%02x", unix.Major(st.Dev), unix.Minor(st.Dev))
}
