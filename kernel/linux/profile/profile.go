// Package profile reads what a file tells of a Linux kernel that the kernel's
// memory does not: the layout of its types where it carries no BTF, its symbols
// where kallsyms lists functions only. The files are those that people have: a
// vmlinux with DWARF or BTF, raw BTF, a symbol table of Volatility 3, a
// System.map; and those that Write makes of them, which are small and quick to
// read.
//
// Which kernel a file is of is for its reader to check: see BuildID and Banner.
// The files are the user's own, not the guest's; what they say is bounded all
// the same.
package profile

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"vmscope/ctype"
	"vmscope/ksym"
)

// ErrFormat is in the chain of errors that say that a file is none that can be
// read, or not what it seems to be.
var ErrFormat = errors.New("not a file that tells of a kernel's types or symbols")

func errFormat(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Profile is what a file tells of a kernel. It is immutable and safe for
// concurrent use.
type Profile struct {
	Name    string // of the file, for people
	Format  string // what it is: "DWARF", "BTF", "Volatility symbols", "System.map"
	BuildID string // GNU build id of the kernel, in hexadecimal; "" if it does not tell
	Banner  string // linux_banner, as /proc/version prints it; "" if it does not tell

	Types *ctype.Types // nil if it tells none
	// Symbols are where the kernel was linked, or where it ran when the list was
	// made; nil if it tells none.
	Symbols *ksym.List

	btf     []byte // of Types
	machine uint16 // of ELF (e_machine); 0 if it does not tell
}

// Bounds of the files. A vmlinux with all its debug information has 400 MiB to
// 1 GiB and is read in parts; other files are read whole.
const (
	maxWhole = 1 << 30
	maxBTF   = 64 << 20
)

// Open reads a file. What it is, is told by its content. Reading the DWARF of a
// kernel takes some ten seconds and several hundred MiB.
func Open(ctx context.Context, path string) (*Profile, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would have it wait for who writes
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", path, errFormat("no regular file"))
	}
	p, err := parse(ctx, f, st.Size(), true)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	p.Name = path
	return p, nil
}

// Parse reads a file that is in memory, which it keeps.
func Parse(ctx context.Context, b []byte) (*Profile, error) {
	return parse(ctx, bytes.NewReader(b), int64(len(b)), true)
}

// parse reads a file; packed says that it may be packed.
func parse(ctx context.Context, r io.ReaderAt, size int64, packed bool) (*Profile, error) {
	head := make([]byte, min(size, 0x400))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), head); err != nil {
		return nil, err
	}
	if bytes.HasPrefix(head, []byte("\x7fELF")) {
		return fromELF(ctx, r)
	}
	if size > maxWhole {
		return nil, errFormat("a file of %d MiB that is no ELF file", size>>20)
	}
	unpack := packing(head)
	if unpack != nil && !packed {
		return nil, errFormat("packed more than once")
	}
	if unpack == nil && !known(head) {
		return nil, unknown(head)
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), b); err != nil {
		return nil, err
	}
	if unpack != nil {
		b, err := unpack(b)
		if err != nil {
			return nil, err
		}
		return parse(ctx, bytes.NewReader(b), int64(len(b)), false)
	}
	switch {
	case isBTF(head):
		return fromBTF(b)
	case isJSON(head):
		return fromISF(bytes.NewReader(b))
	}
	l, err := ksym.ParseSystemMap(bytes.NewReader(b))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	return &Profile{Format: "System.map", Symbols: l}, nil
}

func isBTF(head []byte) bool {
	return bytes.HasPrefix(head, []byte{0x9f, 0xeb}) || bytes.HasPrefix(head, []byte{0xeb, 0x9f})
}

func isJSON(head []byte) bool { return bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("{")) }

// isMap reports whether a file begins with a symbol, "ADDRESS TYPE NAME".
func isMap(head []byte) bool {
	line, _, _ := strings.Cut(string(head), "\n")
	f := strings.Fields(line)
	return len(f) >= 3 && len(f[1]) == 1 && len(f[0]) >= 8 && strings.Trim(strings.ToLower(f[0]), "0123456789abcdef") == ""
}

// isStub reports whether a file is what Debian puts in the place of a System.map.
func isStub(head []byte) bool { return bytes.Contains(head, []byte("The real System.map")) }

func known(head []byte) bool { return isBTF(head) || isJSON(head) || isMap(head) && !isStub(head) }

// unknown says what a file is instead, where that helps.
func unknown(head []byte) error {
	switch {
	case len(head) > 0x206 && string(head[0x202:0x206]) == "HdrS":
		return errFormat("a packed kernel (vmlinuz): it needs the vmlinux, as of Debian's linux-image-*-dbg, or unpacked by the kernel's scripts/extract-vmlinux")
	case isStub(head):
		return errFormat("not the System.map itself, but where to find it: %.200q", bytes.TrimSpace(head))
	}
	return errFormat("no vmlinux, BTF, Volatility symbols or System.map, beginning with %q", head[:min(len(head), 16)])
}

// fromBTF reads raw BTF, as /sys/kernel/btf/vmlinux has it.
func fromBTF(b []byte) (*Profile, error) {
	if len(b) > maxBTF {
		return nil, errFormat("BTF of %d MiB", len(b)>>20)
	}
	return (&Profile{Format: "BTF"}).withTypes(b)
}

// withTypes takes up the types of a BTF.
func (p *Profile) withTypes(btf []byte) (_ *Profile, err error) {
	if p.Types, err = ctype.Parse(btf); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if _, err := p.Types.Lookup("task_struct"); err != nil {
		return nil, errFormat("%s without task_struct: of no whole kernel", p.Format)
	}
	p.btf = btf
	return p, nil
}
