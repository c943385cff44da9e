package tap

import (
	"bytes"
	"errors"
	"net"
	"path/filepath"
	"testing"

	"vmscope/block"
	"vmscope/block/nbd"
	"vmscope/fsinfer/ext4/jbd2"

	"os"
)

// A transaction that changes more blocks than half of the ring takes beside what is written behind it: at its commit, each is
// still read as it was, though all were written home since.
func TestLargeTransaction(t *testing.T) {
	const (
		blocks  = 600
		journal = 1000 // where it begins
		size    = 1100 * bs
	)
	old := make([]byte, size)
	for i := range old {
		old[i] = byte(i/bs) ^ byte(i/bs>>8)
	}
	dir := t.TempDir()
	image, socket := filepath.Join(dir, "image"), filepath.Join(dir, "s")
	if err := os.WriteFile(image, old, 0o600); err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	tap, err := Serve(t.Context(), ln, Service{Image: image}, Options{InProcess: true, RingSize: 2 << 20})
	if err != nil {
		t.Fatal(err)
	}
	defer tap.Close()
	c, err := nbd.Dial(t.Context(), "nbd+unix:///?socket="+socket, nbd.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := tap.Capture(t.Context(), []Journal{{
		Format: jbd2.Format{BlockSize: bs}, Volume: []block.Segment{{Len: size, Legs: []block.Leg{{Disk: 0}}}},
		Extents: []block.Range{{Off: journal * bs, Len: 64 * bs}},
	}}); err != nil {
		t.Fatal(err)
	}
	write := func(off int64, b []byte) {
		t.Helper()
		if _, err := c.WriteAt(b, off); err != nil {
			t.Fatal(err)
		}
	}
	const tags = (bs - 12) / 8 // of a descriptor
	at := int64(journal * bs)
	for n := uint32(0); n < blocks; n += tags {
		var list []uint32
		for k := n; k < min(n+tags, blocks); k++ {
			list = append(list, k)
		}
		write(at, descriptor(1, list...))
		at += bs
	}
	write(at, meta(2, 1))
	commit := at
	for n := range int64(blocks) { // home, with their content: the ring is more than half full of it all
		write(n*bs, bytes.Repeat([]byte{0xee}, bs))
	}
	for {
		w, err := tap.Next(t.Context())
		if mark := (*CapturingError)(nil); errors.As(err, &mark) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if w.Off == commit {
			break
		}
	}
	if n, of := tap.Backlog(); n < of/4 {
		t.Errorf("%d of %d bytes lie behind the commit: too few for this test", n, of)
	}
	for n := range int64(blocks) {
		b := make([]byte, bs)
		if _, err := tap.Device().ReadAt(b, n*bs); err != nil || !bytes.Equal(b, old[n*bs:(n+1)*bs]) {
			t.Fatalf("block %d of %d at the commit: %#x, %v; it was %#x", n, blocks, b[0], err, old[n*bs])
		}
	}
}
