package watch_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/internal/fsoracle"
	"vmscope/watch"
)

// TestPlaces moves a file system about while it is watched, as a boot does with the root: at first it is mounted nowhere, and
// now and then nobody can tell. Paths, and what the watchpoints let pass, are of where it is when an event is told.
func TestPlaces(t *testing.T) {
	r, err := fsoracle.Open("../fsinfer/ext4/testdata/streams/ext4" + fsoracle.Extension)
	if err != nil {
		t.Fatal(err)
	}
	if r, err = r.From(r.Points[0].Entries); err != nil {
		t.Fatal(err)
	}
	log, err := logwrites.NewReader(bytes.NewReader(r.Log), bytesDevice{bytes.NewReader(r.Base)}, logwrites.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	now := time.Unix(1e9, 0)
	answers := []string{"", "/first", "?", "/second", "?", "/"}
	asked, at, seen := 0, "", map[string]int{}
	w, err := watch.New([]watch.Disk{{Name: "vda", Source: watch.FromTap(t.Context(), log)}}, watch.Options{
		Paths: []string{"/first", "/second"},
		Warn:  func(err error) { t.Log(err) },
		Clock: func() time.Time { now = now.Add(time.Second); return now },
		Mounted: func(string, *ext4.Super) (string, error) {
			answer := answers[min(asked/2, len(answers)-1)]
			if asked++; answer == "?" {
				return "", errors.New("nobody can tell")
			}
			at = answer
			return at, nil
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Run(t.Context(), func(e event.Event) error {
		switch e.Op {
		case event.Attached, event.Mount, event.Unmount, event.Lost:
			return nil
		}
		if at == "" || at == "/" || !strings.HasPrefix(e.Path, at+"/") && !strings.HasPrefix(e.OldPath, at+"/") && e.Path != at {
			t.Errorf("mounted at %q: %s %q", at, e.Op, e.Path)
		}
		seen[at]++
		return nil
	}); err != nil {
		t.Error(err)
	}
	if seen["/first"] == 0 || seen["/second"] == 0 || asked < 2*len(answers) {
		t.Errorf("%v events, asked %d times", seen, asked)
	}
}
