package ext4_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"vmscope/block"
	"vmscope/block/logwrites"
	"vmscope/event"
	"vmscope/fsinfer/ext4"
	"vmscope/fsinfer/ext4/jbd2"
	"vmscope/internal/fsoracle"
)

// patched is a disk over an image that stays as it is. It counts what is read of it.
type patched struct {
	base  []byte
	over  map[int64][]byte // by sector
	reads int
}

const sector = 512

func (d *patched) Size() int64 { return int64(len(d.base)) }

func (d *patched) ReadAt(p []byte, off int64) (int, error) {
	d.reads++
	n, err := bytes.NewReader(d.base).ReadAt(p, off)
	if len(d.over) > 0 {
		for s := off &^ (sector - 1); s < off+int64(n); s += sector {
			if b := d.over[s]; b != nil {
				lo := max(s, off)
				copy(p[lo-off:n], b[lo-s:])
			}
		}
	}
	return n, err
}

func (d *patched) write(p []byte, off int64) {
	for len(p) >= sector && off >= 0 && off%sector == 0 && off+sector <= d.Size() {
		d.over[off] = bytes.Clone(p[:sector])
		p, off = p[sector:], off+sector
	}
}

// played is a recording with what a fuzzer plays with.
type played struct {
	image  []byte // the disk amid the recording
	blocks []uint64
	size   int64
	writes []block.Write // that follow
}

// play prepares a recording: the disk after a part of it, the metadata that it wrote, and the writes that follow.
func play(tb testing.TB, name string) *played {
	r, err := fsoracle.Open(filepath.Join("testdata/streams", name+".tar.zst"))
	if err != nil {
		tb.Fatal(err)
	}
	log, err := logwrites.NewReader(bytes.NewReader(r.Log), memory(r.Base), logwrites.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	defer log.Close()
	fs, err := ext4.Attach(memory(r.Base))
	if err != nil {
		tb.Fatal(err)
	}
	defer fs.Close()
	p := &played{size: int64(fs.Super().BlockSize)}
	at := r.Points[1].Entries
	if p.image, err = r.Image(at); err != nil {
		tb.Fatal(err)
	}
	_, journal, _ := fs.Journal()
	seen := map[uint64]bool{}
	for w, err := range log.Writes(tb.Context()) {
		if err != nil {
			tb.Fatal(err)
		}
		if log.Index() > at && len(p.writes) < 400 {
			w.Data = bytes.Clone(w.Data)
			p.writes = append(p.writes, w)
		}
		inJournal := slices.ContainsFunc(journal, func(j block.Range) bool { return w.Off >= j.Off && w.Off < j.End() })
		if w.Op == block.OpWrite && w.Len <= 2*p.size && !inJournal {
			seen[uint64(w.Off/p.size)] = true
		}
	}
	for b := range seen {
		p.blocks = append(p.blocks, b)
	}
	slices.Sort(p.blocks)
	return p
}

// FuzzApply lets a guest write what it likes: parts of a recording, and between them metadata with bytes changed, logged or
// at home.
func FuzzApply(f *testing.F) {
	var all []*played
	for _, name := range []string{"ext3", "ext2-1k", "inline-data", "fast-commit", "no-journal"} {
		all = append(all, play(f, name))
	}
	f.Add([]byte{0, 0, 20, 1, 3, 0, 24, 2, 3, 4, 0, 200})
	f.Add([]byte{1, 0, 60, 2, 3, 0, 24, 2, 3, 4, 0, 200, 3})
	f.Add([]byte{2, 1, 8, 0, 40, 100, 1, 9, 1, 0, 7, 0, 60, 4, 5, 6})
	f.Add([]byte{3, 0, 90, 6, 12, 0, 13, 0, 97, 0, 20, 5, 0, 10})
	f.Add([]byte{4, 2, 7, 0, 32, 3, 2, 8, 0, 60, 9, 3, 3, 0, 99, 3})
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) == 0 || len(script) > 400 {
			return
		}
		next := func() int {
			if len(script) == 0 {
				return 0
			}
			b := script[0]
			script = script[1:]
			return int(b)
		}
		p := all[next()%len(all)]
		disk := &patched{base: p.image, over: map[int64][]byte{}}
		fs, err := ext4.Attach(disk)
		if err != nil {
			t.Fatal(err)
		}
		defer fs.Close()
		if next()%2 == 0 {
			if err := fs.CrawlAll(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		var tid uint32 = 1 << 20
		check := func(events []event.Event, err error) {
			if lost := (*block.LostError)(nil); errors.As(err, &lost) {
				return
			}
			for _, e := range events {
				if e.Op == "" || !strings.HasPrefix(e.Path, "/") || e.OldPath != "" && e.OldPath[0] != '/' || e.Length < 0 || e.Offset < 0 {
					t.Fatalf("event %+v", e)
				}
			}
			if disk.reads > 100_000 {
				t.Fatalf("%d reads for one write", disk.reads)
			}
			// What a watch asks of what it tells.
			for i := range events {
				e := &events[i]
				if e.Attr != nil && e.Attr.Kind == event.File {
					if data, _, err := fs.Content(uint32(e.Inode), 1<<16); len(data) > 1<<16 {
						t.Fatalf("%d bytes of content, %v", len(data), err)
					}
				}
				look := fs.Look()
				if f, _ := look.File(e.Inode); f.Attr.Kind == event.Dir {
					n := 0
					_ = look.Names(e.Inode, func(name string, _ uint64) bool {
						if name == "" || strings.Contains(name, "/") {
							t.Fatalf("name %q", name)
						}
						n++
						return true
					})
					if n > len(p.image)/8 {
						t.Fatalf("%d names on a disk of %d bytes", n, len(p.image))
					}
				}
			}
			disk.reads = 0
		}
		// changed is a block of metadata with some bytes as the script has them.
		changed := func() (uint64, []byte) {
			b := p.blocks[(next()<<8|next())%len(p.blocks)]
			data := make([]byte, p.size)
			disk.ReadAt(data, int64(b)*p.size)
			if next()%8 == 0 { // another block of metadata in its place
				disk.ReadAt(data, int64(p.blocks[(next()<<8|next())%len(p.blocks)])*p.size)
			}
			for range next() % 8 {
				at := next()<<8 | next()
				data[at%len(data)] = byte(next())
			}
			return b, data
		}
		writes := p.writes
		for range 40 {
			if len(script) == 0 {
				break
			}
			switch next() % 7 {
			case 0: // what the guest did
				for range next() {
					if len(writes) == 0 {
						break
					}
					if writes[0].Op == block.OpWrite {
						disk.write(writes[0].Data, writes[0].Off)
					}
					check(fs.Apply(writes[0]))
					writes = writes[1:]
				}
			case 1: // a transaction
				if _, _, ok := fs.Journal(); !ok {
					continue
				}
				tid++
				tx := &jbd2.Tx{TID: tid}
				for i := range 1 + next()%6 {
					b, data := changed()
					tx.Blocks = append(tx.Blocks, jbd2.Logged{Block: b, Index: uint32(i), Data: data})
				}
				check(fs.Commit(tx))
			case 2: // at home
				b, data := changed()
				disk.write(data, int64(b)*p.size)
				check(fs.Apply(block.Write{Op: block.OpWrite, Off: int64(b) * p.size, Len: p.size, Data: data}))
			case 3:
				check(fs.Apply(block.Write{Op: block.OpFlush}))
				check(fs.Quiet(time.Now()))
			case 4:
				b, n := int64(p.blocks[(next()<<8|next())%len(p.blocks)]), int64(next())
				n = min(n*p.size, disk.Size()-b*p.size)
				op := block.OpDiscard
				if n%2 == 0 {
					op = block.OpZeroes
				}
				check(fs.Apply(block.Write{Op: op, Off: b * p.size, Len: n}))
			case 5: // a part of a block, or just its place
				b, data := changed()
				off := int64(b)*p.size + sector
				disk.write(data[sector:], off)
				w := block.Write{Op: block.OpWrite, Off: off, Len: p.size - sector, Data: data[sector:]}
				if next()%2 == 0 {
					w.Data = nil
				}
				check(fs.Apply(w))
			case 6: // a fast commit
				if _, _, ok := fs.Journal(); !ok {
					continue
				}
				tid++
				fc := &jbd2.FastCommit{TID: tid}
				for range 1 + next()%6 {
					o := jbd2.FCOp{Tag: jbd2.FCTag(next() % 10), Ino: uint32(next()), Parent: uint32(next()), Name: []byte{byte('a' + next()%4)}}
					if next()%2 == 0 {
						_, o.Inode = changed()
						o.Inode = o.Inode[:128+next()%129]
					}
					o.Block, o.Len = uint32(next())<<24, uint32(next())<<24
					fc.Ops = append(fc.Ops, o)
				}
				check(fs.FastCommit(fc))
			}
		}
	})
}
