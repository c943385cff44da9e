package watch

import (
	"strings"
	"time"
)

// placeAfter is how long it is taken for granted where a file system is mounted.
const placeAfter = 250 * time.Millisecond

// place asks where the guest has a file system mounted; now, or if the last answer is old. While it is mounted nowhere, that
// may change at any moment: it is asked as often as takes a tenth of the time.
func (w *Watch) place(v *volume, now bool) {
	begin := w.opt.Clock()
	if w.opt.Mounted == nil || !now && begin.Before(v.placed) {
		return
	}
	at, err := w.opt.Mounted(v.name, v.fs.Super())
	if err == nil {
		v.at = mountPoint(at)
	}
	end := w.opt.Clock()
	wait := 9 * end.Sub(begin)
	if err == nil && at != "" {
		wait = max(wait, placeAfter)
	}
	v.placed = end.Add(min(wait, time.Second))
}

// mountPoint cleans what Options.Mounted said.
func mountPoint(p string) string {
	if !strings.HasPrefix(p, "/") {
		return ""
	}
	return strings.TrimRight(p, "/")
}
