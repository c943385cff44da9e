package linux

import (
	"errors"

	"vmscope/ctype"
	"vmscope/ksym"
	"vmscope/mem"
)

// balloonLayout is struct balloon_stats (include/xen/balloon.h). Pages that the balloon lends to drivers, which have another
// domain's memory mapped there, are in neither count (target_unpopulated, since Linux 4.3).
type balloonLayout struct {
	Low  ctype.Field `c:"balloon_stats.balloon_low"`
	High ctype.Field `c:"balloon_stats.balloon_high"`
	Lent ctype.Field `c:"balloon_stats.target_unpopulated,optional"`
}

// givenBack is how many bytes of what the kernel lists as its memory it has no memory for, as it gave that back to Xen: 0 for
// a kernel without Xen's balloon driver. The driver counts a page before it goes, and until after it is back
// (drivers/xen/balloon.c).
func (v *View) givenBack() (uint64, error) {
	at, err := v.Symbol("balloon_stats")
	if errors.Is(err, ksym.ErrNoSymbol) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	l, err := layout[balloonLayout](v.Kernel)
	if err != nil {
		return 0, err
	}
	pages := uint64(0)
	for _, f := range []ctype.Field{l.Low, l.High, l.Lent} {
		if !f.Valid() {
			continue
		}
		n, err := v.Mem.Uint(f.At(at), int(f.Size()))
		if err != nil {
			return 0, err
		}
		pages += min(n, maxBalloon)
	}
	return pages * mem.PageSize, nil
}

// maxBalloon bounds each of the balloon's counts: 16 TiB.
const maxBalloon = 1 << 32
