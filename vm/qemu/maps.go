package qemu

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// vma is a run of a process's address space with one backing: neighbours that
// continue each other are joined.
type vma struct {
	start, end uint64
	perms      string // as in /proc/PID/maps: "rw-s"
	off        uint64 // in the file
	dev        string // "major:minor", hexadecimal
	inode      uint64 // 0: anonymous
	path       string
	// cuts are the starts of the pieces that were joined.
	cuts []uint64
}

func (v vma) size() uint64        { return v.end - v.start }
func (v vma) shared() bool        { return v.perms[3] == 's' }
func (v vma) anon() bool          { return v.inode == 0 }
func (v vma) memfd() bool         { return strings.HasPrefix(v.path, "/memfd:") }
func (v vma) sameFile(w vma) bool { return v.inode == w.inode && v.dev == w.dev }

func readMaps(pid int) ([]vma, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	return parseMaps(string(b))
}

// parseMaps reads /proc/PID/maps (proc(5)) and keeps what may be RAM: readable
// and writable mappings.
func parseMaps(s string) ([]vma, error) {
	var out []vma
	for line := range strings.Lines(s) {
		line = strings.TrimSuffix(line, "\n")
		v, err := parseVMA(line)
		if err != nil {
			return nil, fmt.Errorf("line %q of the process's mappings: %w", line, err)
		}
		if !strings.HasPrefix(v.perms, "rw") || v.path == "[heap]" || strings.HasPrefix(v.path, "[stack") {
			continue
		}
		if n := len(out); n > 0 {
			l := &out[n-1]
			if l.end == v.start && l.perms == v.perms && l.sameFile(v) && (v.anon() || l.off+l.size() == v.off) {
				l.end = v.end
				l.cuts = append(l.cuts, v.start)
				continue
			}
		}
		v.cuts = []uint64{v.start}
		out = append(out, v)
	}
	return out, nil
}

func parseVMA(line string) (v vma, err error) {
	f := make([]string, 0, 6)
	rest := line
	for len(f) < 5 {
		var x string
		x, rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
		f = append(f, x)
	}
	v.perms, v.dev, v.path = f[1], f[3], strings.TrimLeft(rest, " ")
	from, to, ok := strings.Cut(f[0], "-")
	if !ok || len(v.perms) != 4 {
		return v, fmt.Errorf("no mapping")
	}
	for _, x := range []struct {
		s    string
		base int
		to   *uint64
	}{{from, 16, &v.start}, {to, 16, &v.end}, {f[2], 16, &v.off}, {f[4], 10, &v.inode}} {
		if *x.to, err = strconv.ParseUint(x.s, x.base, 64); err != nil {
			return v, err
		}
	}
	if v.end <= v.start {
		return v, fmt.Errorf("ends before it starts")
	}
	return v, nil
}
