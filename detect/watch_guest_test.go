package detect

import (
	"context"
	"errors"
	"runtime"
	"testing"
	"time"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/mem"
)

// TestWatch watches a guest that is tampered with once, rebooted and ended, and
// demands that each change is told once, that what is kept does not grow, and
// that the end is told.
func TestWatch(t *testing.T) {
	lab := guestlab.Boot(t, guestlab.Config{Kernel: "bookworm-cloud", MemoryMiB: 256, AllowReboot: true})
	g, err := vmscope.Open(t.Context(), lab.Name(), vmscope.Writable())
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	slot := func(word func(v *vmscope.View, was uint64) uint64) uint64 { // of a system call; the kernel does not go by it
		var was uint64
		if err := g.Update(t.Context(), func(tx *vmscope.Tx) error {
			at, err := tx.Symbol("sys_call_table")
			if err != nil {
				return err
			}
			if was, err = tx.Mem.Uint64(at + 8*63); err != nil {
				return err
			}
			b := make([]byte, 8)
			for i, n := 0, word(tx.View, was); i < 8; i++ {
				b[i] = byte(n >> (8 * i))
			}
			_, err = tx.Write(tx.Mem, b, at+8*63)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return was
	}
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	const (
		bent   = 20 // sweeps after which
		undone = 40
		reboot = 60
		end    = 80
	)
	var was uint64
	var first int64
	var told []string
	n := 0
	ref := NewReference()
	err = Watch(t.Context(), g, Against(ref), time.Millisecond, func(changes []Change, r Result, err error) error {
		if err != nil {
			if n < reboot {
				t.Errorf("sweep %d: %v", n, err)
			}
			return nil // it just boots
		}
		for _, c := range changes {
			switch {
			case c.Severity == Info:
			case c.Gone:
				told = append(told, "-"+c.Check)
			default:
				told = append(told, c.Check)
			}
		}
		switch n++; n {
		case bent:
			was = slot(func(v *vmscope.View, was uint64) uint64 { return uint64(v.Text) })
		case undone:
			slot(func(*vmscope.View, uint64) uint64 { return was })
		case undone + 5:
			first = heap()
		case reboot:
			if grown := heap() - first; grown > 1<<20 {
				t.Errorf("%d KiB more are kept after %d sweeps", grown>>10, reboot-undone-5)
			}
			if err := lab.Reboot(t.Context()); err != nil {
				return err
			}
		case end:
			if grown := heap() - first; grown > 8<<20 {
				t.Errorf("%d KiB more are kept after a reboot", grown>>10)
			}
			lab.Close()
		}
		return nil
	})
	if !errors.Is(err, mem.ErrUnreachable) || n != end {
		t.Errorf("it ended after %d sweeps with: %v", n, err)
	}
	if len(told) != 4 || told[0]+told[1] != "rodatasyscalls" || told[2]+told[3] != "-rodata-syscalls" {
		t.Errorf("told: %q", told)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Watch(ctx, g, nil, time.Hour, func([]Change, Result, error) error { return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v", err)
	}
}
