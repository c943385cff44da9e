package ext4

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"vmscope/block"
)

// crowd is a file system of more than a million files, none of which is stored: what its blocks hold is made up when they are
// read. Below the root are 17 directories with 1,000 directories each, of which each has 60 files.
type crowd struct {
	made
	fs     *FS    // to know where things lie
	region uint64 // of the blocks of the small directories
	reads  int
}

const (
	crowdTop   = 17
	crowdDirs  = 1000 * crowdTop
	crowdFiles = 60
	crowdTops  = 20  // inode of the first large directory
	crowdFirst = 100 // inode of the first small directory; its files follow it
	crowdStep  = 1 + crowdFiles
	crowdAll   = crowdTop + crowdDirs*crowdStep
)

func (c *crowd) ReadAt(p []byte, off int64) (int, error) {
	c.reads++
	n, err := c.made.ReadAt(p, off)
	for at := 0; off%4096 == 0 && at+4096 <= n; at += 4096 {
		if b := uint64(off+int64(at)) / 4096; c.over[b] == nil {
			c.fill(p[at:at+4096], b)
		}
	}
	return n, err
}

// fill makes up a block.
func (c *crowd) fill(p []byte, b uint64) {
	if b >= c.region && b < c.region+crowdDirs {
		dir := crowdFirst + uint32(b-c.region)*crowdStep
		putDirents(p, 2+crowdFiles, func(i uint32) (uint32, string) {
			switch i {
			case 0:
				return dir, "."
			case 1:
				return topOf(dir), ".."
			}
			return dir + i - 1, fmt.Sprintf("file-%02d.txt", i-2)
		})
	}
	if group, first, ok := c.fs.tableBlock(b); ok {
		size := c.fs.sb.InodeSize
		for i := range uint32(4096 / size) {
			ino := group*c.fs.sb.InodesPerGroup + first + i + 1
			if ino < crowdFirst || ino >= crowdFirst+crowdDirs*crowdStep {
				continue
			}
			raw := p[int(i)*size:][:size]
			if k := ino - crowdFirst; k%crowdStep == 0 {
				putInode(raw, ino, dirMode, 2, 4096, Extent{0, c.region + uint64(k/crowdStep), 1, false})
			} else {
				putInode(raw, ino, fileMode, 1, 4096)
			}
		}
	}
}

// topOf is the directory above a small one.
func topOf(dir uint32) uint32 { return crowdTops + (dir-crowdFirst)/crowdStep/1000 }

// crowdPath is the path of an inode.
func crowdPath(ino uint32) string {
	k, file := (ino-crowdFirst)/crowdStep, (ino-crowdFirst)%crowdStep
	dir := fmt.Sprintf("/dir-%02d/package-%03d", k/1000, k%1000)
	if file == 0 {
		return dir
	}
	return fmt.Sprintf("%s/file-%02d.txt", dir, file-1)
}

// attachCrowd attaches to one.
func attachCrowd(tb testing.TB) (*FS, *crowd) {
	c := &crowd{}
	empty, m := attachMade(tb, nil)
	c.made, c.fs, c.region = *m, empty, regionOf(empty)
	l := &logging{empty, m.over}
	at := c.region + crowdDirs
	l.entries(at, crowdTop, func(i uint32) (uint32, string) { return crowdTops + i, fmt.Sprintf("dir-%02d", i) })
	l.put(RootInode, dirMode, 2+crowdTop, Extent{0, at, 1, false})
	at++
	for i := range uint32(crowdTop) {
		n := l.entries(at, 1002, func(k uint32) (uint32, string) {
			switch k {
			case 0:
				return crowdTops + i, "."
			case 1:
				return RootInode, ".."
			}
			return crowdFirst + (1000*i+k-2)*crowdStep, fmt.Sprintf("package-%03d", k-2)
		})
		l.put(crowdTops+i, dirMode, 1002, Extent{0, at, uint32(n), false})
		at += uint64(n)
	}
	// What shares a block of the table with them is there, too.
	for b, data := range m.over {
		if _, _, ok := empty.tableBlock(b); ok {
			c.fill(data, b)
		}
	}
	fs, err := Attach(c)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { fs.Close() })
	return fs, c
}

// TestMillionInodes measures what the index of a file system with a million files takes, and that it needs none to begin with.
// VMSCOPE_MILLION is the image of another to measure.
func TestMillionInodes(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	if image := os.Getenv("VMSCOPE_MILLION"); image != "" {
		f, err := block.OpenFile(image)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		before := heap()
		fs, err := Attach(f)
		if err != nil {
			t.Fatal(err)
		}
		defer fs.Close()
		measureIndex(t, fs, before)
		return
	}
	_, c := attachCrowd(t)
	before := heap()
	fs, err := Attach(c)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	if named := measureIndex(t, fs, before); named != crowdAll {
		t.Errorf("%d inodes with a name, want %d", named, crowdAll)
	}
	for _, ino := range []uint32{crowdTops, crowdFirst, crowdFirst + 1, crowdFirst + (crowdDirs-1)*crowdStep + crowdFiles} {
		l := &logging{fs, map[uint64][]byte{}}
		le.PutUint16(l.inode(ino), le.Uint16(l.inode(ino))^0o11)
		want := crowdPath(ino)
		if ino == crowdTops {
			want = "/dir-00"
		}
		if events, err := fs.commit(l.tx(1), time.Time{}); err != nil || len(events) != 1 || events[0].Path != want {
			t.Errorf("%v, %v, want CHMOD: %s", events, err, want)
		}
	}
}

// measureIndex crawls to the end and gives how many inodes have names; heap was in use before.
func measureIndex(t *testing.T, fs *FS, before int64) (named int) {
	t.Helper()
	if err := fs.CrawlAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	used := heap() - before
	for ino := uint32(1); ino <= fs.sb.Inodes; ino++ {
		if fs.parents.of(ino) != 0 {
			named++
		}
	}
	if named == 0 {
		t.Fatal("no names")
	}
	each := float64(used) / float64(named)
	t.Logf("%d inodes in use: %.1f MiB, %.2f bytes each", named, float64(used)/(1<<20), each)
	if named >= 1_000_000 && each > 10 {
		t.Errorf("%.2f bytes an inode, want at most 10", each)
	}
	runtime.KeepAlive(fs)
	return named
}

// TestEventsAmidCrawl has things happen in directories that the crawl, which has just begun, did not come to.
func TestEventsAmidCrawl(t *testing.T) {
	fs, c := attachCrowd(t)
	if _, _, err := fs.Crawl(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
	const far = crowdFirst + (crowdDirs-1)*crowdStep // the last directory
	const fresh = crowdFirst + crowdDirs*crowdStep
	begun, reads := fs.parents.next, c.reads
	l := &logging{fs, map[uint64][]byte{}}
	l.put(fresh, fileMode, 1)
	l.put(far, dirMode, 2, Extent{0, c.region + crowdDirs - 1, 1, false}, Extent{1, c.region + crowdDirs + 1000, 1, false})
	l.names(c.region+crowdDirs+1000, fresh, fresh+1, "new %d")
	events, err := fs.commit(l.tx(1), time.Time{})
	want := fmt.Sprintf("%s/new %d", crowdPath(far), fresh)
	if err != nil || len(events) != 1 || events[0].Op != "MKFILE" || events[0].Path != want {
		t.Fatalf("%v, %v, want MKFILE: %s", events, err, want)
	}
	if fs.parents.next != begun || c.reads-reads > 50 {
		t.Errorf("a new name had the crawl go from inode %d to %d, with %d reads", begun, fs.parents.next, c.reads-reads)
	}
	// A name that goes needs no crawl either.
	l = &logging{fs, map[uint64][]byte{}}
	gone := uint32(far - crowdStep + 1)
	le.PutUint16(l.inode(gone)[26:], 0)
	l.inode(far - crowdStep)[12]++ // its directory's time
	le.PutUint32(l.block(c.region + crowdDirs - 2)[12+12:], 0)
	if events, err = fs.commit(l.tx(2), time.Time{}); err != nil || len(events) != 1 || events[0].Op != "RMFILE" || events[0].Path != crowdPath(gone) {
		t.Fatalf("%v, %v, want RMFILE: %s", events, err, crowdPath(gone))
	}
	if fs.parents.next != begun {
		t.Errorf("a name that went had the crawl go from inode %d to %d", begun, fs.parents.next)
	}
	// The crawl goes on behind, and does not count twice what was told.
	if err := fs.CrawlAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for ino, dir := range map[uint32]uint32{fresh: far, gone: 0, far + 1: far, far: topOf(far)} {
		if got := fs.parents.of(ino); got != dir || len(fs.parents.more[ino]) > 0 {
			t.Errorf("inode %d: in directories %d %v, want %d", ino, got, fs.parents.more[ino], dir)
		}
	}
	l = &logging{fs, map[uint64][]byte{}}
	l.put(fresh, fileMode^0o11, 1)
	if events, err = fs.commit(l.tx(3), time.Time{}); err != nil || len(events) != 1 || !strings.HasSuffix(events[0].Path, "/new 1037100") {
		t.Errorf("%v, %v, want CHMOD of the new file", events, err)
	}
}

// heap is what is in use once all garbage is gone.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
