package ext4

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/event"
)

// superWrite is what a guest writes into the superblock when it mounts and unmounts, or into that of the journal.
type superWrite struct {
	inUse          bool
	count          uint16
	mount, written uint32 // times
	log            string // "used" or "empty": of the journal instead; "caught up" is no write
}

// TestMountEvents writes superblocks, and tells which are taken for a mount or an unmount.
func TestMountEvents(t *testing.T) {
	used, empty, caughtUp := superWrite{log: "used"}, superWrite{log: "empty"}, superWrite{log: "caught up"}
	clean, mounted := superWrite{count: 3, mount: 100, written: 150}, superWrite{inUse: true, count: 4, mount: 200, written: 200}
	unmounted := superWrite{count: 4, mount: 200, written: 250}
	later := func(s superWrite, by uint32) superWrite { s.written += by; return s }
	for _, c := range []struct {
		name   string
		first  superWrite // at Attach
		writes []superWrite
		want   string
	}{
		{"mount and unmount", clean, []superWrite{mounted, used, later(mounted, 20), empty, unmounted}, "MOUNT UNMOUNT"},
		{"mounted again, the clock wrong", clean, []superWrite{mounted, used, empty, unmounted, {inUse: true, count: 5, mount: 7, written: 7}}, "MOUNT UNMOUNT MOUNT"},
		{"mounted behind a power loss", clean, []superWrite{mounted, used, {inUse: true, count: 5, mount: 260, written: 260}}, "MOUNT MOUNT"},
		{"the same, the clock wrong", clean, []superWrite{mounted, used, {inUse: true, count: 5, mount: 7, written: 7}}, "MOUNT MOUNT"},
		{"counted anew by e2fsck", clean, []superWrite{mounted, used, {inUse: true, count: 1, mount: 260, written: 260}}, "MOUNT MOUNT"},
		{"count set while mounted", clean, []superWrite{mounted, {inUse: true, count: 0, mount: 200, written: 210}}, "MOUNT"},
		{"count set while clean", clean, []superWrite{{count: 20, mount: 100, written: 160}}, ""},
		{"clean again while the journal is in use", clean, []superWrite{mounted, used, later(clean, 60), later(mounted, 70)}, "MOUNT"},
		{"a mount before again", clean, []superWrite{mounted, used, {inUse: true, count: 2, mount: 50, written: 210}, later(mounted, 20), empty, unmounted}, "MOUNT UNMOUNT"},
		{"emptied behind the superblock", clean, []superWrite{mounted, used, unmounted, empty}, "MOUNT UNMOUNT"},
		{"from before Attach", mounted, []superWrite{clean, mounted, used, later(mounted, 1)}, ""},
		{"from before Attach, of the same second", mounted, []superWrite{{count: 3, mount: 200, written: 200}, mounted, caughtUp, mounted}, ""},
		{"unmounted in the second of Attach", mounted, []superWrite{{count: 4, mount: 200, written: 200}, caughtUp, {log: "quiet"}}, "UNMOUNT"},
		{"mounted in the second of Attach", clean, []superWrite{{inUse: true, count: 4, mount: 150, written: 150}, caughtUp, used}, "MOUNT"},
		{"old, but behind Attach as is said", mounted, []superWrite{clean, caughtUp, mounted}, "UNMOUNT MOUNT"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var image []byte
			fs, _ := linked(t, func(b []byte, _ *Volume) {
				image = b
				c.first.put(b[SuperOffset:])
			})
			bs := int64(fs.sb.BlockSize)
			var got []string
			for i, s := range c.writes {
				w := block.Write{Op: block.OpWrite, Off: SuperOffset, Len: SuperSize, Time: time.Unix(int64(i), 0)}
				var events []event.Event
				var err error
				switch s.log {
				case "caught up":
					fs.CaughtUp()
					continue
				case "quiet":
					events, err = fs.Quiet(w.Time)
				case "":
					w.Data = bytes.Clone(image[SuperOffset:][:SuperSize])
					s.put(w.Data)
				default:
					w.Off, w.Len = fs.journal.where[0].Off, bs
					w.Data = bytes.Clone(image[w.Off:][:bs])
					if s.log == "used" {
						binary.BigEndian.PutUint32(w.Data[0x1c:], 1) // s_start
					}
				}
				if w.Data != nil {
					events, err = fs.Apply(w)
				}
				if err != nil {
					t.Fatal(err)
				}
				for _, e := range events {
					got = append(got, string(e.Op))
					if e.Path != "/" || e.Inode != RootInode || e.Source != event.Home || !e.Time.Equal(w.Time) {
						t.Errorf("%+v", e)
					}
				}
			}
			if strings.Join(got, " ") != c.want {
				t.Errorf("told: %q, want %q", got, c.want)
			}
		})
	}
}

func (s superWrite) put(b []byte) {
	incompat := le.Uint32(b[0x60:]) &^ IncompatRecover
	if s.inUse {
		incompat |= IncompatRecover
	}
	le.PutUint32(b[0x60:], incompat)
	le.PutUint32(b[0x2c:], s.mount)
	le.PutUint32(b[0x30:], s.written)
	le.PutUint16(b[0x34:], s.count)
}
