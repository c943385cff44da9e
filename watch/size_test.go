package watch

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"vmscope/event"
	"vmscope/fsinfer"
)

// crowd is a tree of directories of 200 files each.
type crowd struct{ dirs uint64 }

const crowdFirst = 1000

func (c crowd) Names(dir uint64, visit func(string, uint64) bool) error {
	if dir == 2 {
		for i := range c.dirs {
			if !visit(fmt.Sprintf("directory-%d", i), crowdFirst+i*201) {
				break
			}
		}
		return nil
	}
	for i := range uint64(200) {
		if !visit(fmt.Sprintf("file-%d.conf", i), dir+1+i) {
			break
		}
	}
	return nil
}

func (c crowd) File(inode uint64) (fsinfer.File, error) {
	f := fsinfer.File{Generation: uint32(inode), Attr: event.Attr{Kind: event.File, Nlink: 1, Size: 1}}
	if inode == 2 || (inode-crowdFirst)%201 == 0 {
		f.Attr.Kind = event.Dir
	}
	return f, nil
}

// TestTreeBytes holds the bytes that are counted against those that are used.
func TestTreeBytes(t *testing.T) {
	heap := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	f, err := newFilter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	before := heap()
	tree := newTree(hold, 0, "", f.scope, func(err error) { t.Error(err) })
	begin := time.Now()
	for !tree.done() {
		tree.read(crowd{1000}, portion)
	}
	took := time.Since(begin)
	used := heap() - before
	t.Logf("%d files: %d bytes each, counted as %d; read in %v", len(tree.files), used/int64(len(tree.files)), tree.size/int64(len(tree.files)), took)
	if len(tree.files) != 201001 || used > tree.size*5/4 {
		t.Errorf("%d files take %d bytes, counted as %d", len(tree.files), used, tree.size)
	}
	runtime.KeepAlive(tree)
}
