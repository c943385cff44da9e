package watch_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"vmscope/block"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/internal/fsoracle"
	"vmscope/watch"
)

// idleDisk is a disk to which nothing is written until it is unplugged.
type idleDisk struct {
	bytesDevice
	unplugged chan struct{}
}

func (d *idleDisk) Device() block.Device { return d.bytesDevice }

func (d *idleDisk) Next(ctx context.Context) (block.Write, error) {
	select {
	case <-d.unplugged:
		return block.Write{}, fmt.Errorf("disk: %w", tap.ErrUnplugged)
	case <-ctx.Done():
		return block.Write{}, ctx.Err()
	}
}

// TestPlug plugs disks in while others are watched, and out, one after the other.
func TestPlug(t *testing.T) {
	recording := func(name string) *idleDisk {
		r, err := fsoracle.Open("../fsinfer/ext4/testdata/streams/" + name + fsoracle.Extension)
		if err != nil {
			t.Fatal(err)
		}
		return &idleDisk{bytesDevice{bytes.NewReader(r.Base)}, make(chan struct{})}
	}
	first, second, third := recording("ext4"), recording("ext3"), recording("ext4")
	synctest.Test(t, func(t *testing.T) {
		for _, d := range []*idleDisk{first, second, third} {
			d.unplugged = make(chan struct{})
		}
		gone := 0
		disk := func(name string, d *idleDisk) watch.Disk {
			return watch.Disk{Name: name, Source: d, Gone: func() { gone++ }}
		}
		w, err := watch.New([]watch.Disk{disk("vda", first)}, watch.Options{Warn: func(err error) { t.Error(err) }})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Plug(disk("vdb", second)); err != nil { // before Run
			t.Fatal(err)
		}
		told := map[string]int{}
		ended := make(chan error, 1)
		go func() {
			ended <- w.Run(t.Context(), func(e event.Event) error {
				told[fmt.Sprint(e.Op, " ", e.Disk)]++
				return nil
			})
		}()
		expect := func(want map[string]int) {
			t.Helper()
			time.Sleep(time.Minute)
			synctest.Wait()
			if fmt.Sprint(told) != fmt.Sprint(want) {
				t.Fatalf("told %v, want %v", told, want)
			}
		}
		expect(map[string]int{"ATTACHED vda": 1, "ATTACHED vdb": 1})
		if err := w.Plug(disk("vdc", third)); err != nil {
			t.Fatal(err)
		}
		expect(map[string]int{"ATTACHED vda": 1, "ATTACHED vdb": 1, "ATTACHED vdc": 1})
		close(first.unplugged)
		expect(map[string]int{"ATTACHED vda": 1, "ATTACHED vdb": 1, "ATTACHED vdc": 1, "LOST vda": 1})
		close(third.unplugged)
		expect(map[string]int{"ATTACHED vda": 1, "ATTACHED vdb": 1, "ATTACHED vdc": 1, "LOST vda": 1, "LOST vdc": 1})
		if gone != 2 {
			t.Errorf("%d disks are given back, of 2", gone)
		}
		close(second.unplugged)
		if err := <-ended; !errors.Is(err, tap.ErrUnplugged) {
			t.Errorf("behind the last disk: %v", err)
		}
		if err := w.Plug(disk("vdd", first)); err == nil {
			t.Error("a disk is plugged into a watch that has ended")
		}
	})
}
