package watch

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/block/nbd"
	"vmscope/block/part"
	"vmscope/block/tap"
	"vmscope/event"
	"vmscope/internal/fsoracle"
)

// striped is a volume on two disks that are served and tapped.
type striped struct {
	where *block.Map
	taps  []*tap.Tap
	disks []*nbd.Client
}

// stripe deals an image out over two disks.
func stripe(t *testing.T, image []byte) *striped {
	t.Helper()
	const size = 64 << 10
	n := int64(len(image)) / 2
	where, err := block.NewMap([]block.Segment{{Len: 2 * n, Stripe: size, Legs: []block.Leg{{Disk: 0, Off: 1 << 20}, {Disk: 1}}}})
	if err != nil {
		t.Fatal(err)
	}
	s := &striped{where: where}
	disks := [][]byte{make([]byte, 1<<20+n), make([]byte, n)}
	for off := int64(0); off < 2*n; off += size {
		p := where.Locate(off)
		copy(disks[p.Disk][p.Off:], image[off:off+size])
	}
	for _, content := range disks {
		dir := t.TempDir()
		path, socket := filepath.Join(dir, "image"), filepath.Join(dir, "s")
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
		ln, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		p, err := tap.Serve(t.Context(), ln, tap.Service{Image: path}, tap.Options{InProcess: true})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { p.Close() })
		c, err := nbd.Dial(t.Context(), "nbd+unix:///?socket="+socket, nbd.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		s.taps, s.disks = append(s.taps, p), append(s.disks, c)
	}
	return s
}

// write does what a guest did, each after the one before.
func (s *striped) write(w block.Write) error {
	if w.Op == block.OpFlush {
		return errors.Join(s.disks[0].Flush(), s.disks[1].Flush())
	}
	for off := w.Off; off < w.End(); {
		p := s.where.Locate(off)
		n := min(p.Len, w.End()-off)
		c := s.disks[p.Disk]
		var err error
		switch w.Op {
		case block.OpWrite:
			_, err = c.WriteAt(w.Data[off-w.Off:][:n], p.Off)
		case block.OpZeroes:
			err = c.Zero(p.Off, n, 0)
		case block.OpDiscard:
			err = c.Trim(p.Off, n, 0)
		}
		if err != nil {
			return err
		}
		off += n
	}
	return nil
}

// TestHeldBack has a guest write to a volume on two disks while the watch does nothing: what it tells then of blocks that were
// all overwritten meanwhile is right. Where what they held was not caught, it says so, and what it told before is right.
func TestHeldBack(t *testing.T) {
	for _, name := range []string{"ext4", "ext3", "small-journal"} {
		for _, caught := range []bool{true, false} {
			t.Run(name+map[bool]string{true: "", false: "/not caught"}[caught], func(t *testing.T) { heldBack(t, name, caught) })
		}
	}
}

func heldBack(t *testing.T, name string, caught bool) {
	r, err := fsoracle.Open("../fsinfer/ext4/testdata/streams/" + name + fsoracle.Extension)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = r.From(r.Points[0].Entries); err != nil {
		t.Fatal(err)
	}
	log, err := logwrites.NewReader(bytes.NewReader(r.Log), block.Bytes(r.Base), logwrites.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s := stripe(t, r.Base)
	w, err := New([]Disk{{Name: "vda", Source: s.taps[0]}, {Name: "vdb", Source: s.taps[1]}}, Options{Warn: func(err error) { t.Log(err) }})
	if err != nil {
		t.Fatal(err)
	}
	replayer, err := fsoracle.New(r.Points[0].Tree)
	if err != nil {
		t.Fatal(err)
	}
	var (
		mu      sync.Mutex // of the replayer
		goOn    = make(chan struct{})
		told    int
		stopped bool
		errLost = errors.New("writes lost")
	)
	w.emit = func(e event.Event) error {
		switch e.Op {
		case event.Attached, event.Mount, event.Unmount:
			return nil
		case event.Lost:
			if caught {
				t.Error(e.Detail)
			}
			stopped = true
			return errLost
		}
		if stopped { // told by the other disk's goroutine, until it knows
			return errLost
		}
		<-goOn
		mu.Lock()
		defer mu.Unlock()
		told++
		e.Seq = 0
		for _, f := range replayer.Apply(e) {
			t.Error(f)
		}
		return nil
	}
	w.ready = true
	w.layout = &part.Layout{Volumes: []part.Volume{{
		Name: "vg0/s", Disk: -1, Size: s.where.Size(), Content: part.Content{Type: "ext4"}, Segments: s.where.Segments(),
	}}}
	ctx, cancel := context.WithCancelCause(t.Context())
	w.mu.Lock()
	err = w.start(ctx, w.open(w.layout.Volumes))
	w.mu.Unlock()
	if err != nil || len(w.volumes) != 1 {
		t.Fatal(err, w.volumes)
	}
	if !caught {
		for _, p := range s.taps {
			if _, err := p.Capture(ctx, nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	var group sync.WaitGroup
	for i := range w.disks {
		group.Go(func() {
			if err := w.follow(ctx, i); err != nil {
				cancel(err)
			}
		})
	}
	for x, err := range log.Writes(t.Context()) {
		if err == nil {
			err = s.write(x)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	close(goOn)
	truth := r.Points[len(r.Points)-1].Tree
	left := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return replayer.Compare(truth)
	}
	for end := time.Now().Add(30 * time.Second); ctx.Err() == nil && len(left()) > 0 && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	cancel(nil)
	group.Wait()
	w.close()
	var stop errStop
	if lost := errors.As(context.Cause(ctx), &stop) && stop.error == errLost; lost == caught {
		t.Errorf("%d events, then: %v", told, context.Cause(ctx))
	}
	for _, line := range left() {
		if caught {
			t.Error(line)
		}
	}
	t.Logf("%d events", told)
}
