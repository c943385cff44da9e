package fsoracle_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/internal/fsoracle"
	"vmscope/internal/guestlab/wire"
)

// TestAttachAnywhere begins in the middle of recordings, where transactions are half written and the journal is full, with
// the tree that looking at the disk there gives. From then on events must lead to what the guest said later.
//
// VMSCOPE_SEED and VMSCOPE_RUNS repeat a run; VMSCOPE_RUNS=all begins at every entry instead of a few at random. VMSCOPE_STREAMS
// names a directory with more recordings, as the lab's recorder makes them.
func TestAttachAnywhere(t *testing.T) {
	seed := freshSeed(t)
	for _, path := range recordings(t) {
		name := strings.TrimSuffix(filepath.Base(path), fsoracle.Extension)
		if strings.HasPrefix(name, "ext2") || name == "no-journal" {
			continue // no moment is better than another there, and none is right
		}
		t.Run(name, func(t *testing.T) {
			r := open(t, path)
			first, last := r.Points[0].Entries, r.Points[min(3, len(r.Points)-1)].Entries // the first time that it is mounted
			if strings.HasPrefix(name, "power-loss") {
				last = r.Points[1].Entries
			}
			defer onceMore(t, seed, 2)
			for at := range entries(t, first, last, seed, 2) {
				if err := attachAt(t, r, at, rand.New(rand.NewPCG(seed, at))); err != nil {
					t.Errorf("entry %d: %v", at, err)
				}
			}
		})
	}
}

// recordings gives those of the tests, and those that VMSCOPE_STREAMS names.
func recordings(t *testing.T) []string {
	paths, err := filepath.Glob("../../fsinfer/ext4/testdata/streams/*" + fsoracle.Extension)
	if err != nil || len(paths) == 0 {
		t.Fatalf("no recordings, %v", err)
	}
	if dir := os.Getenv("VMSCOPE_STREAMS"); dir != "" {
		more, _ := filepath.Glob(filepath.Join(dir, "*", "truth.json"))
		for _, path := range more {
			paths = append(paths, filepath.Dir(path))
		}
	}
	return paths
}

func open(t *testing.T, path string) *fsoracle.Recording {
	read := fsoracle.ReadDir
	if strings.HasSuffix(path, fsoracle.Extension) {
		read = fsoracle.Open
	}
	r, err := read(path)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func attachAt(t *testing.T, r *fsoracle.Recording, at uint64, rng *rand.Rand) error {
	from, err := r.From(at)
	if err != nil {
		return err
	}
	log, err := logwrites.NewReader(bytes.NewReader(from.Log), disk{bytes.NewReader(from.Base)}, logwrites.Options{})
	if err != nil {
		return err
	}
	defer log.Close()
	start, err := look(disk{bytes.NewReader(from.Base)})
	if err != nil {
		return fmt.Errorf("look: %w", err)
	}
	fs, err := ext4.Attach(log.Device())
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer fs.Close()
	// The crawl is over, goes on beside the writes, or does not begin: names are then found when they are needed.
	pace := 0
	switch rng.IntN(3) {
	case 0:
		if err := fs.CrawlAll(t.Context()); err != nil {
			return fmt.Errorf("crawl: %w", err)
		}
	case 1:
		pace = 1 + rng.IntN(40)
	}
	replayer, err := fsoracle.New(start)
	if err != nil {
		return err
	}
	points := from.Points
	reached := func() error {
		if points[0].What == "mounted" {
			replayer.Recovered(points[0].Tree)
		}
		lines := replayer.Compare(points[0].Tree)
		for _, f := range replayer.Finish() {
			lines = append(lines, f.String())
		}
		if len(lines) > 0 {
			return fmt.Errorf("%s, entry %d: %s", points[0].What, at+points[0].Entries, strings.Join(lines[:min(len(lines), 10)], "\n"))
		}
		replayer.Adopt(points[0].Tree)
		points = points[1:]
		return nil
	}
	for w, err := range log.Writes(t.Context()) {
		if err != nil {
			return err
		}
		for len(points) > 0 && log.Index() > points[0].Entries {
			if err := reached(); err != nil {
				return err
			}
		}
		if pace > 0 {
			if _, _, err := fs.Crawl(t.Context(), rng.IntN(pace)); err != nil {
				return fmt.Errorf("crawl: %w", err)
			}
		}
		w.Time = time.Unix(1e9, 0)
		events, err := fs.Apply(w)
		if err != nil {
			return fmt.Errorf("entry %d: %w", at+log.Index(), err)
		}
		for _, e := range events {
			if os.Getenv("VMSCOPE_EVENTS") != "" {
				t.Logf("entry %d: %d %s %s %q from %q %d %+v", at+log.Index(), e.TID, e.Source, e.Op, e.Path, e.OldPath, e.Inode, e.Attr)
			}
			if found := replayer.Apply(e); len(found) > 0 {
				return fmt.Errorf("entry %d: %v", at+log.Index(), found)
			}
		}
	}
	for len(points) > 0 {
		if err := reached(); err != nil {
			return err
		}
	}
	return nil
}

// look tells the tree on a disk, journal applied, as a guest would.
func look(dev block.Device) ([]wire.File, error) {
	v, err := ext4.Open(dev)
	if err != nil {
		return nil, err
	}
	return lookAt(v)
}

func lookAt(v *ext4.Volume) ([]wire.File, error) {
	defer v.Close()
	var tree []wire.File
	err := v.Walk("/", func(path string, in *ext4.Inode, err error) error {
		if err != nil {
			return err
		}
		a := in.Attr()
		f := wire.File{
			Path: []byte(path), Inode: uint64(in.Number), Generation: in.Generation, Kind: string(a.Kind), Mode: a.Mode, UID: a.UID, GID: a.GID,
			Size: a.Size, Nlink: a.Nlink,
		}
		switch a.Kind {
		case event.Lnk:
			target, err := v.Target(in)
			if err != nil {
				return err
			}
			f.Target = []byte(target)
		case event.CharDev, event.BlockDev:
			f.Device = in.Rdev()
		}
		tree = append(tree, f)
		return nil
	})
	return tree, err
}

// TestFrom cuts a recording and holds the rest against the whole.
func TestFrom(t *testing.T) {
	r, err := fsoracle.Open("../../fsinfer/ext4/testdata/streams/ext2-4k.tar.zst")
	if err != nil {
		t.Fatal(err)
	}
	total, err := r.Entries()
	if err != nil {
		t.Fatal(err)
	}
	want, err := r.Image(total)
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []uint64{0, 1, r.Points[1].Entries, total} {
		rest, err := r.From(at)
		if err != nil {
			t.Fatal(err)
		}
		n, err := rest.Entries()
		if err != nil || n != total-at {
			t.Errorf("%d of %d entries behind %d, %v", n, total, at, err)
		}
		got, err := rest.Image(n)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("from %d on: the disk differs in the end, %v", at, err)
		}
		kept := slices.DeleteFunc(slices.Clone(r.Points), func(p fsoracle.Point) bool { return p.Entries < at })
		if len(rest.Points) != len(kept) || len(kept) > 0 && rest.Points[0].Entries != kept[0].Entries-at {
			t.Errorf("from %d on: points %d of %d", at, len(rest.Points), len(kept))
		}
	}
	if binary.LittleEndian.Uint64(r.Log[16:]) != total {
		t.Error("the recording itself was cut")
	}
	if _, err := r.From(total + 1); err == nil {
		t.Error("cut behind the end")
	}
}
