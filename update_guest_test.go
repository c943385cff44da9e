package vmscope_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"vmscope"
	"vmscope/internal/guestlab"
	"vmscope/mem"
)

func itoa(n int) string { return strconv.Itoa(n) }

func hex(n uint64) string { return fmt.Sprintf("%#x", n) }

func number(t testing.TB, s string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(s, 0, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// sysctl is what the guest says of one of its settings.
func sysctl(t *testing.T, g *guestlab.Guest, name string) string {
	t.Helper()
	out, err := g.Run(t.Context(), "cat /proc/sys/"+name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// testUpdate changes a kernel variable by each route that writes, and asks the
// guest for it.
func testUpdate(t *testing.T, g *guestlab.Guest) {
	const name = "kernel/panic_on_oops"
	was := sysctl(t, g, name)
	ctx := t.Context()

	closed, err := vmscope.Open(ctx, g.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer closed.Close()
	called := false
	err = closed.Update(ctx, func(*vmscope.Tx) error { called = true; return nil })
	if !errors.Is(err, vmscope.ErrReadOnly) || called {
		t.Errorf("update of a guest not opened Writable: %v, called %v", err, called)
	}
	if _, ok := closed.Machine().(mem.PhysWriter); ok {
		t.Error("the machine of a guest not opened Writable can write")
	}

	for i, route := range []string{"mmap", "vmread"} {
		t.Run(route, func(t *testing.T) {
			w, err := vmscope.Open(ctx, g.Name(), vmscope.Writable(), vmscope.Route(route))
			if err != nil {
				t.Fatal(err)
			}
			defer w.Close()
			value := uint32(40 + i)
			err = w.Update(ctx, func(tx *vmscope.Tx) error {
				at, err := tx.Symbol("panic_on_oops")
				if err != nil {
					return err
				}
				before, err := tx.Mem.Uint32(at)
				if err != nil {
					return err
				}
				if want := strconv.Itoa(int(int32(before))); i == 0 && want != was {
					t.Errorf("panic_on_oops reads as %s, the guest says %s", want, was)
				}
				if n, err := tx.Write(tx.Mem, binary.LittleEndian.AppendUint32(nil, value), at); n != 4 || err != nil {
					return fmt.Errorf("wrote %d: %w", n, err)
				}
				after, err := tx.Mem.Uint32(at)
				if err == nil && after != value {
					t.Errorf("the same Tx reads %d after writing %d", after, value)
				}
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if got := sysctl(t, g, name); got != fmt.Sprint(value) {
				t.Errorf("the guest says %s, want %d", got, value)
			}
			// A write over a page that is not mapped changes nothing.
			err = w.Update(ctx, func(tx *vmscope.Tx) error {
				n, err := tx.Write(tx.Mem, make([]byte, 64), 0x1000)
				if n != 0 || !errors.Is(err, mem.ErrNotMapped) {
					t.Errorf("write to an unmapped address: %d, %v", n, err)
				}
				n, err = tx.WritePhys(make([]byte, 64), 1<<40)
				if n != 0 || !errors.Is(err, mem.ErrNoRAM) {
					t.Errorf("write to no RAM: %d, %v", n, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	// Back, across the boundary of two pages at once: a process's own memory.
	if _, err := g.Run(ctx, "echo "+was+" >/proc/sys/"+name); err != nil {
		t.Fatal(err)
	}
	// Dumps and the monitor cannot write.
	for _, target := range []string{"file:" + g.RAMFile()} {
		d, err := vmscope.Open(ctx, target, vmscope.Writable())
		if err != nil {
			t.Fatal(err)
		}
		err = d.Update(ctx, func(*vmscope.Tx) error { return errors.New("called") })
		d.Close()
		if !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("update of %s: %v", target, err)
		}
	}
	m, err := vmscope.Open(ctx, g.Name(), vmscope.Writable(), vmscope.Route("qmp"))
	if err == nil {
		err = m.Update(ctx, func(*vmscope.Tx) error { return errors.New("called") })
		m.Close()
	}
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("update by the monitor: %v", err)
	}
}
