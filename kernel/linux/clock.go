package linux

import (
	"math"
	"math/bits"
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
	// The clocksource as of the last tick, in cycles modulo mask + 1, of which
	// each takes mult >> shift nanoseconds.
	Cycles ctype.Field `c:"timekeeper.tkr_mono.cycle_last,optional"`
	Mask   ctype.Field `c:"timekeeper.tkr_mono.mask,optional"`
	Mult   ctype.Field `c:"timekeeper.tkr_mono.mult,optional"`
	Shift  ctype.Field `c:"timekeeper.tkr_mono.shift,optional"`
	// tk_core became a struct with a name in v6.13; before, it was anonymous:
	// a sequence counter and the timekeeper.
	Core ctype.Field `c:"tk_data.timekeeper,optional"`
	Seq  uint64      `c:"sizeof(seqcount_raw_spinlock_t)|sizeof(seqcount_raw_spinlock)|sizeof(seqcount_t)|sizeof(seqcount)"`
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
	align := v.port.align64()
	return at + mem.VA((l.Seq+align-1)&^(align-1)), l, nil
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
	var realAt, bootAt mem.VA
	if r := v.inferred; r != nil && r.OffsReal != 0 {
		realAt, bootAt = r.OffsReal, r.OffsBoot
	} else {
		at, l, err := v.timekeeper()
		if err != nil {
			return time.Time{}, err
		}
		realAt, bootAt = l.OffsReal.At(at), l.OffsBoot.At(at)
	}
	real, err := v.Mem.Uint64(realAt)
	if err != nil {
		return time.Time{}, err
	}
	boot, err := v.Mem.Uint64(bootAt)
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

// Beat is a sign of life of a kernel: what its clock showed when it was known to
// be on time.
type Beat struct {
	Jiffies uint64
	At      time.Time // on the host's clock

	cycles uint64 // of the clocksource; 0 if unknown
	last   uint64 // what jiffies were at the last look, which may be later than At
}

// A running guest's clock lags behind the host's, for an idle guest stops its
// tick for seconds. But a clock that has lost more than behind is worth a search
// for another kernel, and only one that has lost less than onTime counts as a
// base for the next look.
const (
	behind = time.Second
	onTime = behind / 10
)

// StillRuns checks that the kernel found earlier is still where it was and that
// its clock kept up with the host's since prev. It is false if the image is gone
// or names another release, and if the clock lags: a kernel that ended in a
// reboot lies in memory as it was, and the clock may have gone on for a while
// since prev. Then Find decides. If it is true, the Beat is for the next look.
func (v *View) StillRuns(prev Beat) (Beat, bool) {
	now := Beat{At: time.Now()}
	if v.imageInPlace() != nil {
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
	now.last = now.Jiffies
	cycles, toTime := v.cycles()
	now.cycles = cycles
	if prev.At.IsZero() {
		return now, true
	}
	// How far the guest's clock fell behind.
	lag := now.At.Sub(prev.At)
	switch {
	case now.Jiffies < prev.last:
		return now, false
	case prev.cycles != 0:
		if now.cycles == 0 {
			return now, false // what was a clock is none any more
		}
		lag -= toTime(prev.cycles, now.cycles)
	case now.Jiffies != prev.last:
		lag = 0 // how long a tick takes is not known
	}
	if lag.Abs() > behind { // nor does any run ahead: that is no clock
		return now, false
	}
	if lag > onTime || now.Jiffies == prev.last {
		prev.last = now.last
		return prev, true
	}
	return now, true
}

// cycles reads the clocksource as of the last tick, and how to turn a distance
// of cycles into time. It is 0 on a kernel whose types are not known.
func (v *View) cycles() (uint64, func(from, to uint64) time.Duration) {
	at, l, err := v.timekeeper()
	if err != nil || !l.Cycles.Valid() || !l.Mask.Valid() || !l.Mult.Valid() || !l.Shift.Valid() {
		return 0, nil
	}
	c, err1 := v.Mem.Uint64(l.Cycles.At(at))
	mask, err2 := v.Mem.Uint64(l.Mask.At(at))
	mult, err3 := v.Mem.Uint32(l.Mult.At(at))
	shift, err4 := v.Mem.Uint32(l.Shift.At(at))
	if err1 != nil || err2 != nil || err3 != nil || err4 != nil || mult == 0 || shift > 32 {
		return 0, nil
	}
	return c, func(from, to uint64) time.Duration {
		hi, lo := bits.Mul64((to-from)&mask, uint64(mult))
		if hi>>shift != 0 {
			return math.MaxInt64
		}
		return time.Duration(min(hi<<(64-shift)|lo>>shift, math.MaxInt64))
	}
}
