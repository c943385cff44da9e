package detect

import (
	"context"
	"encoding/binary"
	"slices"
	"time"

	"vmscope/mem"
)

// A kernel takes a program of eBPF off its lists at once, and frees its code
// behind grace periods of more than one kind, in a work item. It says first where
// a static call or a traced function shall lead, and then rewrites the code. On a
// guest that starves either takes seconds. What may be of that kind is looked at
// again until it is gone, for that long.
const (
	outlastTries = 12
	outlastPause = 150 * time.Millisecond
)

// outlasts is persists; but if there are findings that may go by themselves after
// a while, all must be there in each of some tries.
func outlasts(ctx context.Context, l *Look, report func(Finding), find func(report func(Finding)) error) error {
	var kept []Finding
	for try := 1; ; try++ {
		var now []Finding
		err := persists(ctx, l, func(f Finding) { now = append(now, f) }, find)
		if try > 1 {
			now = slices.DeleteFunc(now, func(f Finding) bool { return f.Severity != Info && !slices.ContainsFunc(kept, f.same) })
		}
		kept = now
		if err != nil || l.Still() || try == outlastTries || !slices.ContainsFunc(kept, func(f Finding) bool { return f.slow }) {
			for _, f := range kept {
				report(f)
			}
			return err
		}
		if err := pause(ctx, outlastPause); err != nil {
			return err
		}
	}
}

// programLike reports whether memory begins as that of a program of eBPF does:
// behind traps there is its size, in bytes or in pages (struct bpf_binary_header,
// include/linux/filter.h). It says only what is worth waiting for.
func programLike(l *Look, at mem.VA) bool {
	const (
		align    = 64 // BPF_PROG_CHUNK_SIZE
		maxBytes = 1 << 20
		maxPages = 1 << 8
	)
	var page [mem.PageSize]byte
	b := page[:mem.PageSize-at%mem.PageSize]
	if _, err := l.Mem.Read(b, at); err != nil {
		return false
	}
	for i := int(-at % align); i+align <= len(b); i += align {
		n := binary.LittleEndian.Uint32(b[i:])
		if n == 0xcccccccc {
			continue
		}
		return n > 0 && (n%align == 0 && n <= maxBytes || (at+mem.VA(i))%mem.PageSize == 0 && n <= maxPages)
	}
	return false
}
