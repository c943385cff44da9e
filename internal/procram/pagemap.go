package procram

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Span is a run of addresses of the process.
type Span struct{ Start, Size uint64 }

func addSpan(l []Span, start, end uint64) []Span {
	if n := len(l); n > 0 && l[n-1].Start+l[n-1].Size == start {
		l[n-1].Size += end - start
		return l
	}
	return append(l, Span{start, end - start})
}

// joinSpans sorts spans and joins those that touch or overlap.
func joinSpans(in []Span) []Span {
	slices.SortFunc(in, func(a, b Span) int { return cmp.Compare(a.Start, b.Start) })
	out := in[:0]
	for _, s := range in {
		if n := len(out); n > 0 && s.Start <= out[n-1].Start+out[n-1].Size {
			l := &out[n-1]
			l.Size = max(l.Size, s.Start+s.Size-l.Start)
			continue
		}
		out = append(out, s)
	}
	return out
}

// Touched lists the pages of [hva, hva+size) that are in memory or in
// swap: the others were never touched and read as zeros, or as the file behind
// them.
func Touched(pid int, hva, size uint64) ([]Span, error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", pid))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if s, err := scanPagemap(f, hva, hva+size); err == nil {
		return s, nil
	}
	return readPagemap(f, hva, hva+size)
}

// The categories of PAGEMAP_SCAN (Linux include/uapi/linux/fs.h).
const (
	pagePresent = 1 << 3
	pageSwapped = 1 << 4
	pagePFNZero = 1 << 5
	// pagemapScan is _IOWR('f', 16, struct pm_scan_arg).
	pagemapScan = 3<<30 | 96<<16 | 'f'<<8 | 16
)

type pmScanArg struct {
	size, flags, start, end, walkEnd, vec, vecLen, maxPages       uint64
	categoryInverted, categoryMask, categoryAnyofMask, returnMask uint64
}

type pageRegion struct{ start, end, categories uint64 }

// scanPagemap asks the kernel for the touched pages at once (Linux 6.7 and
// later), at a price that follows the data, not the size.
func scanPagemap(f *os.File, start, end uint64) ([]Span, error) {
	var out []Span
	vec := make([]pageRegion, 1024)
	// The kernel gets the address of vec inside a struct, where Go does not see
	// it: on the stack, vec would move under the call when the stack grows.
	var pin runtime.Pinner
	pin.Pin(&vec[0])
	defer pin.Unpin()
	for start < end {
		arg := pmScanArg{
			size: 96, start: start, end: end,
			vec: uint64(uintptr(unsafe.Pointer(&vec[0]))), vecLen: uint64(len(vec)),
			categoryInverted: pagePFNZero, categoryMask: pagePFNZero,
			categoryAnyofMask: pagePresent | pageSwapped,
			returnMask:        pagePresent,
		}
		n, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), pagemapScan, uintptr(unsafe.Pointer(&arg)))
		if errno != 0 {
			return nil, errno
		}
		for _, r := range vec[:min(int(n), len(vec))] {
			if from, to := max(r.start, start), min(r.end, end); from < to {
				out = addSpan(out, from, to)
			}
		}
		if arg.walkEnd <= start {
			break
		}
		start = arg.walkEnd
	}
	return out, nil
}

// readPagemap reads the word of every page (Linux
// Documentation/admin-guide/mm/pagemap.rst: bit 63 present, bit 62 swapped).
func readPagemap(f *os.File, start, end uint64) ([]Span, error) {
	var out []Span
	buf := make([]byte, 64<<10)
	for start < end {
		n := min(uint64(len(buf)), (end-start)/4096*8)
		if n == 0 {
			break
		}
		if _, err := f.ReadAt(buf[:n], int64(start/4096*8)); err != nil {
			return nil, err
		}
		for i := uint64(0); i < n; i += 8 {
			if binary.LittleEndian.Uint64(buf[i:])>>62 != 0 {
				out = addSpan(out, start+i/8*4096, start+i/8*4096+4096)
			}
		}
		start += n / 8 * 4096
	}
	return out, nil
}
