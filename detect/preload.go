package detect

import (
	"errors"
	"fmt"
	"strings"

	"vmscope/kernel"
	"vmscope/kernel/linux"
	"vmscope/mem"
)

// preloads are the variables by which the dynamic linker is told to load a
// library before all others (ld.so(8)).
var preloads = []string{"LD_PRELOAD", "LD_AUDIT"}

// maxValue bounds what is shown of a variable or a file.
const maxValue = 256

// preloaded tells of a process whose environment names libraries to preload. It
// is the environment that the process was started with, in memory that it may
// have written since; what is not in memory is not told.
func (w *injectionWalk) preloaded(t linux.Task) {
	env, _ := w.Environ(t)
	for _, e := range env {
		name, value, ok := strings.Cut(string(e), "=")
		if !ok || value == "" {
			continue
		}
		for _, p := range preloads {
			if name == p {
				value = value[:min(len(value), maxValue)]
				w.groups.add(Finding{Check: "injection", Severity: Info, Confidence: Proved,
					Summary: fmt.Sprintf("%%s was started with %s=%s", p, kernel.Text(value))}, t,
					Evidence{What: "its environment", Addr: t.Addr, Found: kernel.Text(e[:min(len(e), maxValue)]).String()}, "preload", p, value)
			}
		}
	}
}

// preloadFile tells of the file that has the dynamic linker preload libraries
// into every program, below the root of a process. It is found if the kernel
// still knows it, which it does since the last program that was started.
func (w *injectionWalk) preloadFile(t linux.Task) {
	root, err := w.RootDentry(t)
	if err != nil || root == 0 || w.roots[root] {
		return
	}
	w.roots[root] = true
	inode, err := w.CachedInode(root, "etc", "ld.so.preload")
	if err != nil || inode == 0 {
		return
	}
	size, err := w.Mem.Uint64(w.f.Size.At(inode))
	if err != nil || size == 0 {
		return
	}
	e := Evidence{What: fmt.Sprintf("inode of /etc/ld.so.preload, %d bytes", size), Addr: inode}
	if text, err := w.head(inode, min(size, maxValue)); err == nil {
		e.Found = kernel.Text(text).String()
	}
	w.groups.add(Finding{Check: "injection", Severity: Info, Confidence: Proved,
		Summary: "/etc/ld.so.preload has libraries loaded into every program, below the root of %s"}, t, e, "ld.so.preload")
}

// errNotCached says that a page of a file is not in memory.
var errNotCached = errors.New("not in memory")

// head is the first bytes of a file, at most a page, from the page cache.
func (w *injectionWalk) head(inode mem.VA, n uint64) ([]byte, error) {
	cache, err := w.Mem.Pointer(w.f.Cache.At(inode))
	if err != nil {
		return nil, err
	}
	pages, err := w.PageCache(cache)
	if err != nil {
		return nil, err
	}
	pa, ok, err := pages.Frame(0)
	if err != nil || !ok {
		return nil, errors.Join(err, errNotCached)
	}
	b := make([]byte, min(n, mem.PageSize))
	_, err = w.Phys.ReadPhys(b, pa)
	return b, err
}
