package ext4_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/internal/fsoracle"
)

// TestRecordings replays what real guests wrote, and what their own system calls said of the tree then. VMSCOPE_STREAMS
// names a directory with more recordings, as the lab's recorder makes them.
func TestRecordings(t *testing.T) {
	packed, _ := filepath.Glob("testdata/streams/*.tar.zst")
	for _, path := range packed {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".tar.zst"), func(t *testing.T) {
			r, err := fsoracle.Open(path)
			if err != nil {
				t.Fatal(err)
			}
			replay(t, r)
		})
	}
	dirs, _ := filepath.Glob(filepath.Join(os.Getenv("VMSCOPE_STREAMS"), "*", "truth.json"))
	for _, path := range dirs {
		if os.Getenv("VMSCOPE_STREAMS") == "" {
			break
		}
		t.Run(filepath.Base(filepath.Dir(path)), func(t *testing.T) {
			r, err := fsoracle.ReadDir(filepath.Dir(path))
			if err != nil {
				t.Fatal(err)
			}
			replay(t, r)
		})
	}
	if len(packed)+len(dirs) == 0 {
		t.Fatal("no recordings")
	}
}

// replay infers events from a recording, hands them to an independent replayer, and compares its tree with the guest's at
// each point where that was told.
func replay(t *testing.T, r *fsoracle.Recording) {
	log, err := logwrites.NewReader(bytes.NewReader(r.Log), memory(r.Base), logwrites.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	fs, err := ext4.Attach(log.Device())
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	if err := fs.CrawlAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	var replayer *fsoracle.Replayer
	journalled := fs.Super().HasJournal()
	verbose := os.Getenv("VMSCOPE_EVENTS") != ""
	wrong, odd, told := 0, 0, 0
	defer func() {
		if odd > 0 {
			t.Logf("%d findings in %d events of a file system without a journal", odd, told)
		}
	}()
	take := func(events []event.Event, err error) {
		if err != nil {
			t.Errorf("entry %d: %v", log.Index(), err)
		}
		told += len(events)
		for _, e := range events {
			if verbose {
				t.Logf("%d %s %s %q from %q %d %+v %d+%d %s", e.TID, e.Source, e.Op, e.Path, e.OldPath, e.Inode, e.Attr, e.Offset, e.Length, e.Detail)
			}
			if replayer == nil {
				continue
			}
			for _, f := range replayer.Apply(e) {
				if !journalled {
					odd++
					if verbose {
						t.Log(f)
					}
					continue // without a journal only the end counts
				}
				if wrong++; wrong < 20 {
					t.Error(f)
				}
			}
		}
	}
	points := r.Points
	reached := func() {
		p := points[0]
		points = points[1:]
		take(fs.Quiet(when(log.Index()).Add(10 * time.Second)))
		if replayer == nil {
			if replayer, err = fsoracle.New(p.Tree); err != nil {
				t.Fatal(err)
			}
			replayer.Adopt(p.Tree)
			return
		}
		for _, f := range replayer.Finish() {
			if journalled {
				t.Error(f)
			}
		}
		if len(p.Tree) == 0 {
			return
		}
		if p.What == "mounted" {
			replayer.Recovered(p.Tree)
		}
		lines := replayer.Compare(p.Tree)
		for i, line := range lines {
			if i < 20 {
				t.Errorf("%s, entry %d: %s", p.What, p.Entries, line)
			}
		}
		if len(lines) > 0 {
			t.FailNow()
		}
		replayer.Adopt(p.Tree)
	}
	for w, err := range log.Writes(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		for len(points) > 0 && log.Index() > points[0].Entries {
			reached()
		}
		w.Time = when(log.Index())
		take(fs.Apply(w))
		if journalled && log.Index()%3 == 0 { // any moment may be a quiet one
			take(fs.Quiet(w.Time))
		}
	}
	for len(points) > 0 {
		reached()
	}
}

// when gives a log's entries a time: it has none.
func when(entry uint64) time.Time {
	return time.Unix(1e9, 0).Add(time.Duration(entry) * time.Millisecond)
}

// memory is a disk in memory.
type memory []byte

func (m memory) Size() int64 { return int64(len(m)) }

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(m).ReadAt(p, off)
}
