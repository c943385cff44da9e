package fsoracle_test

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/internal/fsoracle"
)

// A segment is the events between two points of a recording.
type segment struct {
	events []event.Event
	point  fsoracle.Point
}

// segments infers the events of a recording.
func segments(t *testing.T, r *fsoracle.Recording) []segment {
	t.Helper()
	log, err := logwrites.NewReader(bytes.NewReader(r.Log), disk{bytes.NewReader(r.Base)}, logwrites.Options{})
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
	list := []segment{{point: r.Points[0]}}
	for w, err := range log.Writes(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		for log.Index() > list[len(list)-1].point.Entries {
			if len(list) == len(r.Points) {
				t.Fatal("writes behind the last point")
			}
			list = append(list, segment{point: r.Points[len(list)]})
		}
		w.Time = time.Unix(1e9, 0)
		events, err := fs.Apply(w)
		if err != nil {
			t.Fatal(err)
		}
		last := &list[len(list)-1]
		last.events = append(last.events, events...)
	}
	return list
}

type disk struct{ *bytes.Reader }

var _ block.Device = disk{}

// sound reports whether the events lead from point to point without a finding. The first segment ends where the
// guest has just mounted: its events lead to the tree that the replay begins with.
func sound(t *testing.T, list []segment) bool {
	t.Helper()
	r, err := fsoracle.New(list[0].point.Tree)
	if err != nil {
		t.Fatal(err)
	}
	r.Adopt(list[0].point.Tree)
	for _, s := range list[1:] {
		for _, e := range s.events {
			if len(r.Apply(e)) > 0 {
				return false
			}
		}
		if len(r.Finish()) > 0 || len(r.Compare(s.point.Tree)) > 0 {
			return false
		}
		r.Adopt(s.point.Tree)
	}
	return true
}

// TestRealEventsCount drops and doubles each event of a real stream. No name that comes, goes or moves may be missed; a
// change may, if later events tell of the same.
func TestRealEventsCount(t *testing.T) {
	rec, err := fsoracle.Open("../../fsinfer/ext4/testdata/streams/ext4.tar.zst")
	if err != nil {
		t.Fatal(err)
	}
	list := segments(t, rec)
	if !sound(t, list) {
		t.Fatal("the events as they are do not lead to the guest's tree")
	}
	attributes := []event.Op{event.Write, event.Truncate, event.Chmod, event.Chown, event.Xattr, event.Mount, event.Unmount}
	total, missed := 0, 0
	for n, s := range list[1:] {
		for i, e := range s.events {
			total++
			changed := slices.Clone(list)
			changed[n+1].events = slices.Delete(slices.Clone(s.events), i, i+1)
			dropped := sound(t, changed)
			changed[n+1].events = slices.Insert(slices.Clone(s.events), i, e)
			doubled := sound(t, changed)
			if slices.Contains(attributes, e.Op) {
				if dropped {
					missed++
				}
				continue
			}
			if dropped || doubled {
				t.Errorf("%s %q of transaction %d: nobody noticed that it was dropped (%v) or doubled (%v)", e.Op, e.Path, e.TID, dropped, doubled)
			}
		}
	}
	t.Logf("%d events; %d changes could be left out, since others tell the same", total, missed)
}
