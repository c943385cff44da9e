package ext4

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"vmscope/block"
	"vmscope/fsinfer/ext4/jbd2"
)

// made is a file system made by mke2fs, and blocks on top of it that are not in the file.
type made struct {
	block.Device
	over map[uint64][]byte
}

func (m *made) ReadAt(p []byte, off int64) (int, error) {
	n, err := m.Device.ReadAt(p, off)
	for at := 0; off%4096 == 0 && at+4096 <= n; at += 4096 {
		if b := m.over[uint64(off+int64(at))/4096]; b != nil {
			copy(p[at:], b)
		}
	}
	return n, err
}

// attachMade attaches to an empty file system with room for a million files.
func attachMade(tb testing.TB, fill func(fs *FS, m *made)) (*FS, *made) {
	tb.Helper()
	image := mkfs(tb, "", "2G", "-t", "ext4", "-b", "4096", "-N", "1200000", "-O", "^metadata_csum,^uninit_bg")
	f, err := block.OpenFile(image)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { f.Close() })
	m := &made{f, map[uint64][]byte{}}
	for range 2 { // once to know where things lie
		fs, err := Attach(m)
		if err != nil {
			tb.Fatal(err)
		}
		if fill == nil {
			tb.Cleanup(func() { fs.Close() })
			if err := fs.CrawlAll(tb.Context()); err != nil {
				tb.Fatal(err)
			}
			return fs, m
		}
		fill(fs, m)
		fill = nil
		fs.Close()
	}
	return nil, nil
}

// change gathers the blocks of a transaction.
type logging struct {
	fs     *FS
	blocks map[uint64][]byte
}

func (l *logging) block(b uint64) []byte {
	if l.blocks[b] == nil {
		data := make([]byte, l.fs.sb.BlockSize)
		old, err := l.fs.current(data, b)
		if err != nil {
			panic(err)
		}
		l.blocks[b] = slices.Clone(old)
	}
	return l.blocks[b]
}

// inode gives the place of an inode.
func (l *logging) inode(ino uint32) []byte {
	b, off, err := l.fs.inodePlace(ino)
	if err != nil {
		panic(err)
	}
	return l.block(b)[off : off+l.fs.sb.InodeSize]
}

// put makes an inode with its blocks in one piece, from the second of the directory on where it had one.
func (l *logging) put(ino uint32, mode uint16, links int, extents ...Extent) {
	putInode(l.inode(ino), ino, mode, links, l.fs.sb.BlockSize, extents...)
}

func putInode(raw []byte, ino uint32, mode uint16, links, blockSize int, extents ...Extent) {
	le.PutUint16(raw, mode)
	le.PutUint16(raw[26:], uint16(links))
	le.PutUint32(raw[32:], FlagExtents)
	le.PutUint32(raw[100:], ino*7) // generation
	le.PutUint16(raw[128:], 32)
	tree := raw[40:100]
	le.PutUint16(tree, extentMagic)
	le.PutUint16(tree[2:], uint16(len(extents)))
	le.PutUint16(tree[4:], 4)
	size := 0
	for i, e := range extents {
		p := tree[12*(i+1):]
		le.PutUint32(p, uint32(e.Logical))
		le.PutUint16(p[4:], uint16(e.Len))
		le.PutUint32(p[8:], uint32(e.Physical))
		size += int(e.Len) * blockSize
	}
	if size > 0 {
		le.PutUint32(raw[4:], uint32(size))
	}
}

// names fills blocks from first on with entries, and gives how many blocks these are.
func (l *logging) names(first uint64, from, to uint32, format string) int {
	return l.scattered(first, from, to, 1, format)
}

// scattered does the same; the inodes come one behind another only where step is 1.
func (l *logging) scattered(first uint64, from, to, step uint32, format string) int {
	count := to - from
	return l.entries(first, count, func(i uint32) (uint32, string) {
		ino := from + uint32(uint64(i)*uint64(step)%uint64(count))
		return ino, fmt.Sprintf(format, ino)
	})
}

// entries fills blocks from first on with count names, and gives how many blocks these are.
func (l *logging) entries(first uint64, count uint32, name func(i uint32) (uint32, string)) int {
	n := 0
	for i := uint32(0); i < count; n++ {
		i += putDirents(l.block(first+uint64(n)), count-i, func(k uint32) (uint32, string) { return name(i + k) })
	}
	return n
}

// putDirents fills a block with at most count names, and gives how many there is room for.
func putDirents(b []byte, count uint32, name func(i uint32) (uint32, string)) uint32 {
	last, off, i := 0, 0, uint32(0)
	for ; i < count; i++ {
		ino, name := name(i)
		size := (8 + len(name) + 3) &^ 3
		if off+size > len(b) {
			break
		}
		le.PutUint32(b[off:], ino)
		le.PutUint16(b[off+4:], uint16(size))
		b[off+6], b[off+7] = byte(len(name)), 1
		copy(b[off+8:], name)
		last, off = off, off+size
	}
	le.PutUint16(b[last+4:], uint16(len(b)-last))
	return i
}

func (l *logging) tx(tid uint32) *jbd2.Tx {
	tx := &jbd2.Tx{TID: tid}
	for _, b := range slices.Sorted(maps.Keys(l.blocks)) {
		tx.Blocks = append(tx.Blocks, jbd2.Logged{Block: b, Data: l.blocks[b]})
	}
	return tx
}

func regionOf(fs *FS) uint64 { return fs.sb.Blocks - 20000 } // blocks that mke2fs uses for nothing

// cpuTime is what the process has used of all processors: a machine that others use too makes a clock tell less.
func cpuTime() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

const dirMode, fileMode = sIFDIR | 0o755, sIFREG | 0o644

// BenchmarkNames is a commit that makes n files in a directory, one that gives them other names, and one that removes them. Their
// entries lie as in a directory with an index: in no order.
func BenchmarkNames(b *testing.B) {
	for _, n := range []uint32{1, 10_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			const first = 1000 // inode
			var region uint64
			fs, _ := attachMade(b, func(fs *FS, m *made) {
				region = regionOf(fs)
				l := &logging{fs, m.over}
				l.names(region, 12, 13, "directory %d")
				l.put(RootInode, dirMode, 3, Extent{0, region, 1, false})
				l.put(12, dirMode, 2, Extent{0, region + 1, 1, false})
				l.names(region+1, 100, 101, "first %d")
				l.put(100, fileMode, 1)
			})
			const prime = 7919
			add, rename, drop := &logging{fs, map[uint64][]byte{}}, &logging{fs, map[uint64][]byte{}}, &logging{fs, map[uint64][]byte{}}
			blocks := add.scattered(region+2, first, first+n, prime, "name of file %d")
			rename.scattered(region+2, first, first+n, prime, "file of name %d")
			add.put(12, dirMode, 2, Extent{0, region + 1, uint32(blocks + 1), false})
			rename.put(12, dirMode, 2, Extent{0, region + 1, uint32(blocks + 1), false})
			for ino := uint32(first); ino < first+n; ino++ {
				add.put(ino, fileMode, 1)
				rename.put(ino, fileMode, 1)
				le.PutUint32(rename.inode(ino)[12:], ino) // ctime
				drop.put(ino, fileMode, 0)                // the kernel leaves the rest of it
			}
			drop.put(12, dirMode, 2, Extent{0, region + 1, 1, false})
			steps := []struct {
				name string
				tx   *jbd2.Tx
				cpu  time.Duration
			}{{name: "make", tx: add.tx(1)}, {name: "rename", tx: rename.tx(2)}, {name: "remove", tx: drop.tx(3)}}
			for b.Loop() {
				for i := range steps {
					start := cpuTime()
					events, err := fs.commit(steps[i].tx, time.Time{})
					steps[i].cpu += cpuTime() - start
					if err != nil || len(events) != int(n) {
						b.Fatalf("%s: %d events, %v", steps[i].name, len(events), err)
					}
				}
			}
			for _, s := range steps {
				b.ReportMetric(float64(s.cpu.Microseconds())/float64(b.N), "cpu-µs-"+s.name)
			}
		})
	}
}

// BenchmarkLargeDir is what happens in a directory of a million names: files that come, one that changes.
func BenchmarkLargeDir(b *testing.B) {
	const names = 1_000_000
	var region uint64
	blocks := 0
	fs, m := attachMade(b, func(fs *FS, m *made) {
		region = regionOf(fs)
		l := &logging{fs, m.over}
		l.names(region, 12, 13, "directory %d")
		l.put(RootInode, dirMode, 3, Extent{0, region, 1, false})
		blocks = l.names(region+1, 100, 100+names, "f%07d")
		l.put(12, dirMode, 2, Extent{0, region + 1, uint32(blocks), false})
		l.put(1_000_000, fileMode, 1)
	})
	_ = m
	const n = 1000
	add := &logging{fs, map[uint64][]byte{}}
	more := add.names(region+1+uint64(blocks), 1_100_000, 1_100_000+n, "name of file %d")
	add.put(12, dirMode, 2, Extent{0, region + 1, uint32(blocks + more), false})
	drop := &logging{fs, map[uint64][]byte{}}
	for ino := uint32(1_100_000); ino < 1_100_000+n; ino++ {
		drop.inode(ino)
		add.put(ino, fileMode, 1)
	}
	drop.put(12, dirMode, 2, Extent{0, region + 1, uint32(blocks), false})
	b.Run("make and remove 1000", func(b *testing.B) {
		began := cpuTime()
		for b.Loop() {
			for _, l := range []*logging{add, drop} {
				if events, err := fs.commit(l.tx(1), time.Time{}); err != nil || len(events) != n {
					b.Fatalf("%d events, %v", len(events), err)
				}
			}
		}
		b.ReportMetric(float64(cpuTime()-began)/2e3/float64(b.N), "cpu-µs/commit")
	})
	b.Run("chmod", func(b *testing.B) {
		var mode uint16
		began := cpuTime()
		for b.Loop() {
			mode ^= 0o77
			l := &logging{fs, map[uint64][]byte{}}
			l.put(1_000_000, fileMode^mode, 1)
			if events, err := fs.commit(l.tx(1), time.Time{}); err != nil || len(events) != 1 || !strings.HasPrefix(events[0].Path, "/directory 12/f") {
				b.Fatalf("%v, %v", events, err)
			}
			fs.parents.names.drop(1_000_000)
		}
		b.ReportMetric(float64(cpuTime()-began)/1e3/float64(b.N), "cpu-µs/commit")
	})
}

// BenchmarkData is a stream of data, with blocks that a journal logged among it.
func BenchmarkData(b *testing.B) {
	for _, c := range []struct {
		name string
		size int64
	}{{"1M", 1 << 20}, {"4K", 4096}} {
		b.Run(c.name, func(b *testing.B) {
			fs, _ := attachMade(b, func(fs *FS, m *made) {})
			for i := range uint64(10_000) {
				if err := fs.store.put(100_000+i*7, zeroBlock[:4096]); err != nil {
					b.Fatal(err)
				}
			}
			data := make([]byte, c.size)
			off := int64(1 << 20)
			end := fs.dev.Size() - c.size
			b.SetBytes(c.size)
			began := cpuTime()
			for b.Loop() {
				if _, err := fs.Apply(block.Write{Op: block.OpWrite, Off: off, Len: c.size, Data: data}); err != nil {
					b.Fatal(err)
				}
				if off += 3 * c.size; off > end {
					off = 1 << 20
				}
			}
			b.ReportMetric(float64(c.size)*float64(b.N)/1e9/(cpuTime()-began).Seconds(), "GB/cpu-s")
		})
	}
}
