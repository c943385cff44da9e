package ext4

import (
	"fmt"
	"testing"
	"time"

	"vmscope/event"
)

// TestManyRings has a guest exchange the names of many files within one transaction: all with their neighbours, and all in one
// round. What that takes must not grow with the square of their number.
func TestManyRings(t *testing.T) {
	const n, first = 30_000, 100
	path := func(i uint32) string { return fmt.Sprintf("/file-%06d", i) }
	for _, c := range []struct {
		name string
		file func(i uint32) uint32 // whose file is called by the number i behind it
	}{
		{"pairs", func(i uint32) uint32 { return i ^ 1 }},
		{"one", func(i uint32) uint32 { return (i + 1) % n }},
	} {
		t.Run(c.name, func(t *testing.T) {
			fs, m := attachMade(t, nil)
			region := regionOf(fs)
			dir := func(l *logging, file func(i uint32) uint32) {
				blocks := l.entries(region, n+2, func(i uint32) (uint32, string) {
					switch i {
					case 0:
						return RootInode, "."
					case 1:
						return RootInode, ".."
					}
					return first + file(i-2), fmt.Sprintf("file-%06d", i-2)
				})
				l.put(RootInode, dirMode, 2, Extent{0, region, uint32(blocks), false})
			}
			l := &logging{fs, m.over}
			dir(l, func(i uint32) uint32 { return i })
			names := map[string]uint64{}
			for i := range uint32(n) {
				l.put(first+i, fileMode, 1)
				names[path(i)] = first + uint64(i)
			}
			fs, err := Attach(m)
			if err != nil {
				t.Fatal(err)
			}
			defer fs.Close()
			tx := &logging{fs, map[uint64][]byte{}}
			dir(tx, c.file)
			began := time.Now()
			events, err := fs.commit(tx.tx(1), time.Time{})
			t.Logf("%d events in %v", len(events), time.Since(began))
			if err != nil || len(events) != n {
				t.Fatalf("%d events, %v", len(events), err)
			}
			var ring []event.Event
			for _, e := range events {
				if e.Op != event.Rename || e.Detail != event.Exchange || names[e.OldPath] != e.Inode {
					t.Fatalf("%+v", e)
				}
				ring = append(ring, e)
				if e.Path == ring[0].OldPath {
					for _, e := range ring {
						names[e.Path] = e.Inode
					}
					ring = ring[:0]
				}
			}
			for i := range uint32(n) {
				if got := names[path(i)]; got != first+uint64(c.file(i)) {
					t.Fatalf("%s is inode %d", path(i), got)
				}
			}
		})
	}
}
