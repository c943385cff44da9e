package watch_test

import (
	"bytes"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/internal/fsoracle"
	"vmscope/watch"
)

// boots watches the recording of a file system from before it is mounted.
func boots(t *testing.T, o watch.Options, emit func(event.Event) error) {
	t.Helper()
	r, err := fsoracle.Open("../fsinfer/ext4/testdata/streams/ext4" + fsoracle.Extension)
	if err != nil {
		t.Fatal(err)
	}
	log, err := logwrites.NewReader(bytes.NewReader(r.Log), bytesDevice{bytes.NewReader(r.Base)}, logwrites.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	o.Warn = func(err error) { t.Log(err) }
	w, err := watch.New([]watch.Disk{{Name: "vda", Source: watch.FromTap(t.Context(), log)}}, o)
	if err == nil {
		err = w.Run(t.Context(), emit)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestMountAfterMount: the guest sees a mount after the write that MOUNT is told for. From the next commit on, watchpoints are
// of the place where it is.
func TestMountAfterMount(t *testing.T) {
	now, asked, told := time.Unix(1e9, 0), 0, 0
	boots(t, watch.Options{
		Clock: func() time.Time { return now },
		Mounted: func(string, *ext4.Super) (string, error) {
			now = now.Add(100 * time.Millisecond) // looking takes its time
			if asked++; asked < 3 {               // at the attach, and at MOUNT
				return "", nil
			}
			return "/mnt", nil
		},
	}, func(e event.Event) error {
		if e.TID == 0 { // ATTACHED, MOUNT
			return nil
		}
		if told++; !strings.HasPrefix(e.Path, "/mnt/") {
			t.Errorf("%s %q", e.Op, e.Path)
		}
		return nil
	})
	if told == 0 {
		t.Error("nothing told")
	}
}

// TestUnmountBeforeUnmount: when the write that UNMOUNT is told for comes, the guest has the file system nowhere any more.
func TestUnmountBeforeUnmount(t *testing.T) {
	asked, gone := 0, -1
	const want = "/mnt"
	run := func() {
		now, found := time.Unix(1e9, 0), false
		asked = 0
		boots(t, watch.Options{
			Clock: func() time.Time { now = now.Add(2 * time.Second); return now }, // each answer is old
			Mounted: func(string, *ext4.Super) (string, error) {
				if asked++; asked == gone {
					return "", nil
				}
				return "/mnt", nil
			},
		}, func(e event.Event) error {
			if e.Op == event.Unmount && !found {
				found = true
				if e.Path != want {
					t.Errorf("UNMOUNT %q at answer %d, want %q", e.Path, asked, want)
				}
				if gone < 0 {
					gone = asked
				}
			}
			return nil
		})
		if !found {
			t.Error("no UNMOUNT")
		}
	}
	run()
	run() // with an answer that it is nowhere, just before
}

// TestPlaceHangs: a guest that keeps from us where its file systems are does not keep its events, nor Run.
func TestPlaceHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began, told, end := time.Now(), 0, make(chan struct{})
		defer close(end)
		boots(t, watch.Options{
			Mounted: func(string, *ext4.Super) (string, error) { <-end; return "/late", nil },
		}, func(e event.Event) error {
			if told++; strings.HasPrefix(e.Path, "/late") {
				t.Errorf("%s %q", e.Op, e.Path)
			}
			return nil
		})
		if told < 100 || time.Since(began) > 10*time.Second {
			t.Errorf("%d events after %v", told, time.Since(began))
		}
	})
}
