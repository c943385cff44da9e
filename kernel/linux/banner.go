package linux

import (
	"bytes"
	"errors"
	"fmt"

	"vmscope/mem"
)

// findBanner looks in the image for the banner of a kernel of which no symbol
// tells where it is. In the log, and in what is left of the image's packed form,
// stands the same text; but only linux_banner (init/version.c) has its whole line
// and a NUL behind it, and the release and version that the kernel states
// elsewhere.
func (v *View) findBanner() (mem.VA, error) {
	name, err := v.utsName()
	if err != nil {
		return 0, err
	}
	extents, err := mem.Extents(v.Phys)
	if err != nil {
		return 0, err
	}
	start := []byte("Linux version " + name.release + " (")
	end := []byte(" " + name.version + "\n\x00")
	const piece = 1 << 20
	buf := make([]byte, piece+maxBanner)
	for _, r := range clip(mem.Range{Start: v.Kernel.Phys, Size: imageMax}, extents) {
		for at := r.Start; at < r.End(); at += piece {
			n, _ := v.Phys.ReadPhys(buf[:min(uint64(len(buf)), uint64(r.End()-at))], at)
			for b, off := buf[:n], 0; ; {
				i := bytes.Index(b[off:], start)
				if i < 0 {
					break
				}
				off += i
				line := b[off:min(off+maxBanner, n)]
				if j := bytes.IndexByte(line, 0); j >= 0 && bytes.HasSuffix(line[:j+1], end) {
					return v.Text + mem.VA(at-v.Kernel.Phys) + mem.VA(off), nil
				}
				off++
			}
		}
	}
	return 0, fmt.Errorf("the kernel's banner: %w: its image has none of release %q", mem.ErrInconsistent, name.release)
}

// utsName is what the kernel states of itself in its first UTS namespace.
type utsName struct{ node, release, version string }

// newUTSLen is the size of a member of struct new_utsname
// (include/uapi/linux/utsname.h): sysname, nodename, release, version, machine.
const newUTSLen = 65

// utsName reads it where VMCOREINFO says that they are.
func (v *View) utsName() (utsName, error) {
	at, err := v.Symbol("init_uts_ns")
	if err != nil {
		return utsName{}, err
	}
	if v.info == nil {
		return utsName{}, fmt.Errorf("the kernel's release: %w", errors.ErrUnsupported)
	}
	off, ok := v.info.Offset("uts_namespace.name")
	if !ok || off < 0 || off > maxObject {
		return utsName{}, fmt.Errorf("the kernel's release: VMCOREINFO does not tell where: %w", errors.ErrUnsupported)
	}
	var b [5 * newUTSLen]byte
	if _, err := v.Mem.Read(b[:], at+mem.VA(off)); err != nil {
		return utsName{}, err
	}
	text := func(i int) string { return string(cstr(b[i*newUTSLen : (i+1)*newUTSLen])) }
	return utsName{text(1), text(2), text(3)}, nil
}
