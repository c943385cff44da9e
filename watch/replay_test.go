package watch_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"strings"
	"testing"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/internal/fsoracle"
	"vmscope/watch"
)

// shifted is a tap whose disk has a partition table before what another one's disk holds.
type shifted struct {
	*logwrites.Reader
	head []byte
}

func (s shifted) Device() block.Device { return s }
func (s shifted) Size() int64          { return s.Reader.Device().Size() + int64(len(s.head)) }
func (s shifted) ReadAt(p []byte, off int64) (n int, err error) {
	if off < int64(len(s.head)) {
		if n = copy(p, s.head[off:]); n == len(p) {
			return n, nil
		}
	}
	m, err := s.Reader.Device().ReadAt(p[n:], off+int64(n)-int64(len(s.head)))
	return n + m, err
}

// moved hands out the writes of a shifted tap, at their places.
type moved struct {
	watch.Source
	disk shifted
}

func (m moved) Device() block.Device { return m.disk }

func (m moved) Next(ctx context.Context) (block.Write, error) {
	w, err := m.Source.Next(ctx)
	if w.Op != block.OpFlush {
		w.Off += int64(len(m.disk.head))
	}
	return w, err
}

type bytesDevice struct{ *bytes.Reader }

// TestRecorded watches recordings: of a whole disk, and of one behind a partition table.
func TestRecorded(t *testing.T) {
	for _, name := range []string{"ext4", "ext3"} {
		for _, head := range []int{0, 1 << 20} {
			r, err := fsoracle.Open("../fsinfer/ext4/testdata/streams/" + name + fsoracle.Extension)
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
			source, volume := watch.FromTap(t.Context(), log), "vda "
			if head > 0 {
				disk := shifted{log, make([]byte, head)}
				entry := disk.head[446:]
				entry[4] = 0x83
				binary.LittleEndian.PutUint32(entry[8:], uint32(head/512))
				binary.LittleEndian.PutUint32(entry[12:], uint32(len(r.Base)/512))
				disk.head[510], disk.head[511] = 0x55, 0xaa
				source, volume = moved{source, disk}, "vda1 "
			}
			last, all := uint64(0), uint64(0) // of the crawl
			w, err := watch.New([]watch.Disk{{Name: "vda", Source: source}}, watch.Options{Warn: func(err error) { t.Log(err) }, Progress: func(fs string, done, total uint64) {
				if !strings.HasPrefix(fs, strings.TrimSpace(volume)) || done < last || done > total {
					t.Errorf("progress of %q: %d of %d, behind %d", fs, done, total, last)
				}
				last, all = done, total
			}})
			if err != nil {
				t.Fatal(err)
			}
			replayer, err := fsoracle.New(r.Points[0].Tree)
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			err = w.Run(t.Context(), func(e event.Event) error {
				n++
				if !strings.HasPrefix(e.FS, volume) || e.Disk != "vda" || e.Seq != uint64(n) {
					t.Errorf("event %d of %q on %q has number %d", n, e.FS, e.Disk, e.Seq)
				}
				switch e.Op {
				case event.Attached, event.Mount, event.Unmount:
					return nil
				}
				e.Seq = 0
				for _, f := range replayer.Apply(e) {
					t.Error(f)
				}
				return nil
			})
			if err != nil || n < 100 {
				t.Errorf("%s behind %d bytes: %d events, %v", name, head, n, err)
			}
			if last == 0 || last != all {
				t.Errorf("the crawl is told up to %d of %d", last, all)
			}
			for _, line := range replayer.Compare(r.Points[len(r.Points)-1].Tree) {
				t.Errorf("%s behind %d bytes: %s", name, head, line)
			}
		}
	}
}
