package tap

import (
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"vmscope/block"
	"vmscope/block/nbd"
	"vmscope/internal/ring"
)

// BenchmarkReceive writes to a receiver over a Unix socket, as QEMU's mirror job does, while the ring is read: with content,
// and where nobody wants it.
func BenchmarkReceive(b *testing.B) {
	for _, size := range []int{4 << 10, 1 << 20} {
		for _, wanted := range []bool{true, false} {
			b.Run(fmt.Sprintf("%dK/wanted=%v", size>>10, wanted), func(b *testing.B) { receiveWrites(b, size, wanted) })
		}
	}
}

func receiveWrites(b *testing.B, size int, wanted bool) {
	const disk = 1 << 30
	f, err := ring.Create(64<<20, disk)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	p, err := ring.NewProducer(f)
	if err != nil {
		b.Fatal(err)
	}
	con, err := ring.NewConsumer(f)
	if err != nil {
		b.Fatal(err)
	}
	con.Interest(disk).Select(!wanted)
	go func() {
		for {
			if _, err := con.Next(b.Context()); err != nil {
				return
			}
		}
	}()
	path := filepath.Join(b.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		b.Fatal(err)
	}
	srv := &nbd.Server{Exports: []nbd.Export{{Device: newSink(newFeed(p, disk), disk)}}}
	defer srv.Close()
	go srv.Serve(b.Context(), ln)
	c, err := nbd.Dial(b.Context(), "nbd+unix:///?socket="+path, nbd.Options{})
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	data := make([]byte, size)
	b.SetBytes(int64(size))
	off := int64(0)
	for b.Loop() {
		if _, err := c.WriteAt(data, off); err != nil {
			b.Fatal(err)
		}
		off = (off + int64(size)) % disk
	}
}

// BenchmarkOverwritten is what a write costs beside a journal that is captured.
func BenchmarkOverwritten(b *testing.B) {
	c := &capture{have: marks{}}
	for i := range int64(1000) {
		c.have = c.have.set(block.Range{Off: i * 1 << 20, Len: 4096})
	}
	off := int64(0)
	for b.Loop() {
		c.overwritten(off, 64<<10)
		off = (off + 64<<10) & (1<<30 - 1)
	}
}
