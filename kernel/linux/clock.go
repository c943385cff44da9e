package linux

import (
	"time"

	"vmscope/ctype"
	"vmscope/mem"
)

// clockLayout is what is read of struct timekeeper
// (include/linux/timekeeper_internal.h).
type clockLayout struct {
	XTime    ctype.Field `c:"timekeeper.xtime_sec"`
	OffsReal ctype.Field `c:"timekeeper.offs_real"`
	OffsBoot ctype.Field `c:"timekeeper.offs_boot"`
	// tk_core became a struct with a name in v6.13; before, it was anonymous:
	// a sequence counter and the timekeeper.
	Core ctype.Field `c:"tk_data.timekeeper,optional"`
	Seq  uint64      `c:"sizeof(seqcount_raw_spinlock_t)|sizeof(seqcount_t)"`
}

// timekeeper finds the kernel's clock.
func (v *View) timekeeper() (mem.VA, *clockLayout, error) {
	l, err := layout[clockLayout](v.Kernel)
	if err != nil {
		return 0, nil, err
	}
	// An array of several clocks since v6.17, of which the first is this one.
	at, _, err := v.firstSymbol("tk_core", "timekeeper_data")
	if err != nil {
		return 0, nil, err
	}
	if l.Core.Valid() {
		return l.Core.At(at), l, nil
	}
	return at + mem.VA((l.Seq+7)&^7), l, nil
}

// WallClock is the guest's time of day, as of its last timer tick.
func (v *View) WallClock() (time.Time, error) {
	at, l, err := v.timekeeper()
	if err != nil {
		return time.Time{}, err
	}
	s, err := v.Mem.Uint64(l.XTime.At(at))
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(int64(s), 0).UTC(), nil
}

// BootTime is the time of day at which the guest's boot-time clock was zero:
// CLOCK_REALTIME minus CLOCK_BOOTTIME.
func (v *View) BootTime() (time.Time, error) {
	at, l, err := v.timekeeper()
	if err != nil {
		return time.Time{}, err
	}
	real, err := v.Mem.Uint64(l.OffsReal.At(at))
	if err != nil {
		return time.Time{}, err
	}
	boot, err := v.Mem.Uint64(l.OffsBoot.At(at))
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(0, int64(real-boot)).UTC(), nil
}

// Jiffies is the number of timer ticks since boot, as the kernel counts them
// (it starts 5 minutes before zero).
func (v *View) Jiffies() (uint64, error) {
	at, _, err := v.firstSymbol("jiffies_64", "jiffies")
	if err != nil {
		return 0, err
	}
	return v.Mem.Uint64(at)
}

// Beat is a sign of life of a kernel at one moment.
type Beat struct {
	Jiffies uint64
	At      time.Time // on the host's clock
}

// still is how long a running guest's tick may stand still before it is worth
// looking whether another kernel runs. An idle guest stops its tick for
// seconds, so standing still alone proves nothing.
const still = time.Second

// StillRuns checks that the kernel found earlier is still where it was, and
// returns its present sign of life. It is false if the image is gone or names
// another release, and if the clock has stood still since prev for longer than
// a running kernel's usually does: then Find decides.
func (v *View) StillRuns(prev Beat) (Beat, bool) {
	now := Beat{At: time.Now()}
	if leads(v.Mem, v.Text, v.Kernel.Phys) != nil {
		return now, false
	}
	at, err := v.Symbol("linux_banner")
	if err != nil {
		return now, false
	}
	b, err := v.Mem.CString(at, len(v.Banner))
	if err != nil || string(b) != v.Banner {
		return now, false
	}
	if now.Jiffies, err = v.Jiffies(); err != nil {
		return now, false
	}
	switch {
	case prev.At.IsZero():
		return now, true
	case now.Jiffies < prev.Jiffies:
		return now, false
	case now.Jiffies == prev.Jiffies:
		if now.At.Sub(prev.At) > still {
			return now, false
		}
		now.At = prev.At // the stillness began then
	}
	return now, true
}
