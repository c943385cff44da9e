package infer

import (
	"vmscope/mem"
)

const (
	// maxClock is how much of a struct timekeeper is looked at.
	maxClock = 1 << 10
	// clockLen is offs_real, offs_boot and offs_tai.
	clockLen = 24
)

// clock finds the offsets of clocks in the kernel's timekeeper, of which there may
// be copies that are the same but while it is set: in shadow_timekeeper, and since
// v6.13 behind it.
func (l *look) clock() (real, boot mem.VA, err error) {
	at, err := l.k.Symbol("tk_core")
	if err != nil {
		at, err = l.k.Symbol("timekeeper_data")
	}
	var found []clock
	if err == nil {
		o, err := l.object(at, maxClock, maxClock)
		if err != nil {
			return 0, 0, err
		}
		for off := 0; off < maxClock; off += l.w {
			found = l.addClock(found, &o, off)
		}
	} else {
		found = l.image().clocks
	}
	for len(found) > 1 && found[0].b == found[len(found)-1].b {
		found = found[:len(found)-1]
	}
	c, err := only("timekeeper.offs_real", found)
	return c.at, c.at + 8, err
}

// clock is where an offs_real is, and its copy with what is behind it.
type clock struct {
	at mem.VA
	b  [clockLen]byte
}

// addClock appends the clock at an offset if one is there: wall_to_monotonic, a time
// in seconds and nanoseconds, is offs_real with the other sign; behind that stand
// offs_boot and offs_tai, which is ahead of offs_real by whole seconds
// (include/linux/timekeeper_internal.h).
func (l *look) addClock(to []clock, o *object, off int) []clock {
	const second = 1e9
	sec := int64(o.u64(off))
	if sec >= -1 || sec <= -1<<33 || len(to) >= maxFound {
		return to
	}
	nsec := int64(o.word(off + 8))
	// On i386 a number of 64 bits may stand at any multiple of 4.
	for at := off + 8 + l.w; at <= off+16 && at+clockLen <= len(o.b); at += 4 {
		ahead := int64(o.u64(at))
		tai := int64(o.u64(at+16)) - ahead
		if nsec >= 0 && nsec < second && -(sec*second+nsec) == ahead && tai%second == 0 && tai >= 0 && tai <= 1000*second {
			to = append(to, clock{o.at + mem.VA(at), [clockLen]byte(o.b[at:])})
		}
	}
	return to
}
