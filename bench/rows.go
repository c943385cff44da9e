package main

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/mem"
)

// A row is one thing that is measured. To add one, append it here; floor names
// the line of floor.c to compare with, or is empty.
type row struct {
	name  string
	floor string
	loop  func(s *mem.Space, addrs []mem.VA, i, n int) error // operations i to i+n-1
}

var page [mem.PageSize]byte

var rows = []row{
	{"walk, no cache", "walk", func(s *mem.Space, a []mem.VA, i, n int) error {
		for range n {
			if _, err := s.Tr.Translate(a[0]); err != nil {
				return err
			}
		}
		return nil
	}},
	{"8 bytes, same page", "u64-hot", func(s *mem.Space, a []mem.VA, i, n int) error {
		for range n {
			if _, err := s.Uint64(a[0]); err != nil {
				return err
			}
		}
		return nil
	}},
	{"8 bytes, random", "u64-random", func(s *mem.Space, a []mem.VA, i, n int) error {
		for k := i; k < i+n; k++ {
			va := a[k%len(a)]
			if _, err := s.Uint64(va + va>>9&0xff8); err != nil {
				return err
			}
		}
		return nil
	}},
	{"4 KiB, same page", "page-hot", func(s *mem.Space, a []mem.VA, i, n int) error {
		for range n {
			if _, err := s.Read(page[:], a[0]); err != nil {
				return err
			}
		}
		return nil
	}},
	{"4 KiB, random", "page-random", func(s *mem.Space, a []mem.VA, i, n int) error {
		for k := i; k < i+n; k++ {
			if _, err := s.Read(page[:], a[k%len(a)]); err != nil {
				return err
			}
		}
		return nil
	}},
}

// seen makes each measurement of random reads go on where the last one ended.
var seen = map[string]int{}

// timeRow gives the nanoseconds of CPU time of one operation, measured for
// about the given time.
func timeRow(r row, s *mem.Space, addrs []mem.VA, slice time.Duration) (ns float64, err error) {
	const step = 1000
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	n := 0
	err = mem.Guard(func() error {
		start := cpuTime()
		for {
			if err := r.loop(s, addrs, seen[r.name]+n, step); err != nil {
				return err
			}
			n += step
			if t := cpuTime() - start; t >= slice {
				ns = float64(t.Nanoseconds()) / float64(n)
				return nil
			}
		}
	})
	seen[r.name] += n
	return ns, err
}

// cpuTime is what the calling thread has used: other work on the machine does
// not count.
func cpuTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(t.Nano())
}
