package procram

import (
	"fmt"
	"os"
	"strconv"
	"strings"
)

// Mapping is a run of a process's address space with one backing: neighbours that
// continue each other are joined.
type Mapping struct {
	Start, End uint64
	Perms      string // as in /proc/PID/maps: "rw-s"
	Off        uint64 // in the file
	Dev        string // "major:minor", hexadecimal
	Inode      uint64 // 0: anonymous
	Path       string
	// Cuts are the starts of the pieces that were joined.
	Cuts []uint64
}

// Size is in bytes.
func (m Mapping) Size() uint64 { return m.End - m.Start }

// Shared reports whether what is written to it reaches the file.
func (m Mapping) Shared() bool { return m.Perms[3] == 's' }

// Anonymous reports whether no file is behind it.
func (m Mapping) Anonymous() bool { return m.Inode == 0 }

// Memfd reports whether the file is one of memfd_create(2).
func (m Mapping) Memfd() bool { return strings.HasPrefix(m.Path, "/memfd:") }

// SameFile reports whether the same file is behind both.
func (m Mapping) SameFile(o Mapping) bool { return m.Inode == o.Inode && m.Dev == o.Dev }

// Mappings lists what of a process's address space may be RAM: see ParseMaps.
func Mappings(pid int) ([]Mapping, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		return nil, err
	}
	return ParseMaps(string(b))
}

// ParseMaps reads /proc/PID/maps (proc(5)) and keeps what may be RAM: readable
// and writable mappings.
func ParseMaps(s string) ([]Mapping, error) {
	var out []Mapping
	for line := range strings.Lines(s) {
		line = strings.TrimSuffix(line, "\n")
		v, err := parseVMA(line)
		if err != nil {
			return nil, fmt.Errorf("line %q of the process's mappings: %w", line, err)
		}
		if !strings.HasPrefix(v.Perms, "rw") || v.Path == "[heap]" || strings.HasPrefix(v.Path, "[stack") {
			continue
		}
		if n := len(out); n > 0 {
			l := &out[n-1]
			if l.End == v.Start && l.Perms == v.Perms && l.SameFile(v) && (v.Anonymous() || l.Off+l.Size() == v.Off) {
				l.End = v.End
				l.Cuts = append(l.Cuts, v.Start)
				continue
			}
		}
		v.Cuts = []uint64{v.Start}
		out = append(out, v)
	}
	return out, nil
}

func parseVMA(line string) (v Mapping, err error) {
	f := make([]string, 0, 6)
	rest := line
	for len(f) < 5 {
		var x string
		x, rest, _ = strings.Cut(strings.TrimLeft(rest, " "), " ")
		f = append(f, x)
	}
	v.Perms, v.Dev, v.Path = f[1], f[3], strings.TrimLeft(rest, " ")
	from, to, ok := strings.Cut(f[0], "-")
	if !ok || len(v.Perms) != 4 {
		return v, fmt.Errorf("no mapping")
	}
	for _, x := range []struct {
		s    string
		base int
		to   *uint64
	}{{from, 16, &v.Start}, {to, 16, &v.End}, {f[2], 16, &v.Off}, {f[4], 10, &v.Inode}} {
		if *x.to, err = strconv.ParseUint(x.s, x.base, 64); err != nil {
			return v, err
		}
	}
	if v.End <= v.Start {
		return v, fmt.Errorf("ends before it starts")
	}
	return v, nil
}
