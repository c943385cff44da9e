package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"vmscope/block"
)

var _ interface {
	block.Device
	PayloadWriter
	Flusher
	Trimmer
	Zeroer
	Extenter
	Cacher
	MultiConner
	ReadOnlyer
} = (*Client)(nil)

// memDisk is a disk in memory that says in which order it was asked.
type memDisk struct {
	mu    sync.Mutex
	data  []byte
	log   []string
	fail  error         // of reads beyond half of the disk, and of all writes
	block chan struct{} // what a flush waits for
}

func (d *memDisk) Size() int64 { return int64(len(d.data)) }

func (d *memDisk) ReadAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil && off+int64(len(p)) > int64(len(d.data)/2) {
		return 0, d.fail
	}
	return copy(p, d.data[off:]), nil
}

func (d *memDisk) WriteAt(p []byte, off int64) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return 0, d.fail
	}
	d.log = append(d.log, "write")
	return copy(d.data[off:], p), nil
}

func (d *memDisk) Flush() error {
	if d.block != nil {
		<-d.block
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, "flush")
	return nil
}

// tapDisk takes payloads into slots of its own, as a tap does.
type tapDisk struct {
	memDisk
	full  atomic.Bool
	taken atomic.Int64
}

func (d *tapDisk) WritePayload(p *Payload, off int64, f Flags) error {
	if d.full.Load() {
		return nil
	}
	n := p.Len()
	slot := d.data[off : off+int64(n)]
	if m, err := p.Read(slot); m != n || err != nil {
		return err
	}
	if m, err := p.Read(slot); m != 0 || err != io.EOF {
		return errors.New("a payload goes on behind its end")
	}
	d.taken.Add(int64(n))
	if f&FUA != 0 {
		return d.Flush()
	}
	return nil
}

func newMem(n int) *memDisk { return &memDisk{data: randomBytes(n)} }

func TestOnlyReading(t *testing.T) {
	content := randomBytes(100_000)
	sock := serve(t, &Server{Exports: []Export{{Name: "a", Device: section(content), Description: "of no use"}}})
	c := dialTest(t, unixURI(sock, "a"))
	in := c.Info()
	if !in.ReadOnly || in.Size != 100_000 || in.Flush || in.Trim || in.Extents || in.Description != "of no use" {
		t.Errorf("info is %+v", in)
	}
	got := make([]byte, 100_000)
	if n, err := c.ReadAt(got, 0); n != len(got) || err != nil || !bytes.Equal(got, content) {
		t.Errorf("ReadAt: %d, %v", n, err)
	}
	if n, err := c.ReadAt(got, 99_000); n != 1000 || err != io.EOF || !bytes.Equal(got[:n], content[99_000:]) {
		t.Errorf("ReadAt at the end: %d, %v", n, err)
	}
	if n, err := c.ReadAt(got, 200_000); n != 0 || err != io.EOF {
		t.Errorf("ReadAt behind the end: %d, %v", n, err)
	}
	var refused *Error
	if _, err := c.WriteAt(got[:10], 5); !errors.As(err, &refused) || refused.Errno != syscall.EPERM || refused.Off != 5 {
		t.Errorf("WriteAt: %v, want EPERM at 5", err)
	}
	if err := c.Zero(0, 10, 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("Zero: %v, want EPERM", err)
	}
}

// section is a device that can only be read.
type section []byte

func (s section) Size() int64 { return int64(len(s)) }
func (s section) ReadAt(p []byte, off int64) (int, error) {
	return bytes.NewReader(s).ReadAt(p, off)
}

// devices are the kinds of devices that can be written.
func devices(t *testing.T, size int) map[string]block.Device {
	file := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(file, randomBytes(size), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(file, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	far := dialTest(t, unixURI(serve(t, &Server{Exports: []Export{{Device: newMem(size)}}}), ""))
	return map[string]block.Device{"WriterAt": newMem(size), "PayloadWriter": &tapDisk{memDisk: *newMem(size)},
		"File": f, "Client": far}
}

// All that a client may do, in random order, against a model.
func TestRandomRequests(t *testing.T) {
	const size = 3 << 20
	for name, dev := range devices(t, size) {
		t.Run(name, func(t *testing.T) {
			sock := serve(t, &Server{Exports: []Export{{Device: dev}}})
			c := dialTest(t, unixURI(sock, ""))
			model := randomBytes(size)
			rng := rand.New(rand.NewPCG(1, uint64(len(name))))
			for i := range 600 {
				off := rng.Int64N(size)
				n := 1 + rng.Int64N(min(size-off, []int64{600, 9000, 200_000, size}[rng.IntN(4)]))
				flags := []Flags{0, 0, 0, FUA}[rng.IntN(4)]
				var err error
				switch rng.IntN(6) {
				case 0, 1:
					b := make([]byte, n)
					for j := range b {
						b[j] = byte(i + j)
					}
					copy(model[off:], b)
					_, err = c.WriteContext(t.Context(), b, off, flags)
				case 2:
					clear(model[off : off+n])
					err = c.Zero(off, n, flags|[]Flags{0, NoHole}[rng.IntN(2)])
				case 3:
					err = c.Flush()
				default:
					b := make([]byte, n)
					_, err = c.ReadAt(b, off)
					if !bytes.Equal(b, model[off:off+n]) {
						t.Fatalf("%d: %d bytes at %d read wrong", i, n, off)
					}
				}
				if err != nil {
					t.Fatalf("%d: %d bytes at %d: %v", i, n, off, err)
				}
			}
			if exts, err := c.Extents(nil, 0, size, 1000); err != nil || len(exts) == 0 {
				t.Errorf("Extents: %v, %v", exts, err)
			}
		})
	}
}

func TestManyAtOnce(t *testing.T) {
	dev := &tapDisk{memDisk: *newMem(8 << 20)}
	c := dialTest(t, unixURI(serve(t, &Server{Exports: []Export{{Device: dev}}}), ""))
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			base := int64(g) << 20
			rng := rand.New(rand.NewPCG(2, uint64(g)))
			for i := range 200 {
				n := []int{100, 4096, 70_000}[rng.IntN(3)]
				b, got := bytes.Repeat([]byte{byte(g*31 + i)}, n), make([]byte, n)
				off := base + rng.Int64N(1<<20-int64(n))
				if _, err := c.WriteAt(b, off); err != nil {
					t.Error(err)
					return
				}
				if _, err := c.ReadAt(got, off); err != nil || !bytes.Equal(b, got) {
					t.Errorf("%d bytes at %d: read something else than was written, or %v", n, off, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestPayloadLeft(t *testing.T) {
	dev := &tapDisk{memDisk: *newMem(4 << 20)}
	dev.full.Store(true)
	c := dialTest(t, unixURI(serve(t, &Server{Exports: []Export{{Device: dev}}}), ""))
	was := slices.Clone(dev.data)
	for _, n := range []int{1, 4096, 3 << 20} {
		if _, err := c.WriteAt(make([]byte, n), 0); err != nil {
			t.Errorf("write of %d bytes that the device leaves: %v", n, err)
		}
	}
	if dev.taken.Load() != 0 || !bytes.Equal(dev.data, was) {
		t.Error("the device has something of what it left")
	}
}

func TestDeviceErrors(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want syscall.Errno
	}{
		{syscall.EIO, syscall.EIO}, {syscall.EDQUOT, syscall.ENOSPC}, {syscall.EROFS, syscall.EPERM},
		{errors.New("out of order"), syscall.EIO}, {&os.PathError{Err: syscall.ENOSPC}, syscall.ENOSPC},
		{syscall.EBADF, syscall.EIO}, {errors.ErrUnsupported, syscall.ENOTSUP},
	} {
		dev := newMem(4 << 20)
		dev.fail = tt.err
		c := dialTest(t, unixURI(serve(t, &Server{Exports: []Export{{Device: dev}}}), ""))
		var e *Error
		if _, err := c.WriteAt([]byte("x"), 7); !errors.As(err, &e) || e.Errno != tt.want || e.Off != 7 || e.Message == "" {
			t.Errorf("%v: write gives %v, want %v", tt.err, err, tt.want)
		}
		// Short, long, and broken off amid the data.
		for _, off := range []int64{3 << 20, 3<<20 + 1, 0} {
			for _, n := range []int{10, 1<<20 - 1, 4 << 20} {
				if off+int64(n) > 4<<20 || off+int64(n) <= 2<<20 {
					continue
				}
				if _, err := c.ReadAt(make([]byte, n), off); !errors.As(err, &e) || e.Errno != tt.want {
					t.Errorf("%v: read of %d bytes at %d gives %v, want %v", tt.err, n, off, err, tt.want)
				}
			}
		}
		if _, err := c.ReadAt(make([]byte, 10), 0); err != nil {
			t.Errorf("%v: read of what is whole: %v", tt.err, err)
		}
	}
}

func TestBlockSizes(t *testing.T) {
	dev := newMem(1<<20 + 100)
	sock := serve(t, &Server{Exports: []Export{{Device: dev, MinBlock: 512, PreferredBlock: 8192, MaxPayload: 64 << 10}}})
	c := dialTest(t, unixURI(sock, ""))
	if in := c.Info(); in.MinBlock != 512 || in.PreferredBlock != 8192 || in.MaxPayload != 64<<10 || in.Size != 1<<20 {
		t.Errorf("info is %+v", in)
	}
	for _, r := range [][2]int64{{0, 1 << 20}, {1, 10}, {511, 2}, {100, 300_000}, {1<<20 - 1, 1}} {
		b := make([]byte, r[1])
		if _, err := c.ReadAt(b, r[0]); err != nil || !bytes.Equal(b, dev.data[r[0]:r[0]+r[1]]) {
			t.Errorf("unaligned read of %d bytes at %d: %v", r[1], r[0], err)
		}
	}
	if _, err := c.WriteAt(make([]byte, 100), 0); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("unaligned write: %v, want EINVAL", err)
	}
	// A client that does not ask for block sizes is refused.
	h := &hail{conn: rawDial(t, sock)}
	if err := h.greet(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	var refused *optionError
	if err := h.options(optGo, make([]byte, 6), func(uint32, []byte) error { return nil }); !errors.As(err, &refused) || refused.typ != repErrBlockSize {
		t.Errorf("GO without block sizes: %v", err)
	}
}

func rawDial(t testing.TB, sock string) net.Conn {
	t.Helper()
	conn, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	return conn
}

func TestList(t *testing.T) {
	sock := serve(t, &Server{Exports: []Export{{Name: "a", Device: newMem(1000)},
		{Name: "böse/ ?", Description: "zwei", Device: section("abc")}}})
	got, err := List(t.Context(), unixURI(sock, ""), Options{})
	if err != nil || len(got) != 2 || got[0].Name != "a" || got[1].Name != "böse/ ?" || got[1].Description != "zwei" ||
		got[0].Size != 1000 || got[1].Size != 3 || got[0].ReadOnly || !got[1].ReadOnly {
		t.Errorf("List: %+v, %v", got, err)
	}
	if c := dialTest(t, unixURI(sock, "böse/ ?")); c.Size() != 3 {
		t.Errorf("size is %d", c.Size())
	}
	if c := dialTest(t, unixURI(sock, "")); c.Size() != 1000 {
		t.Errorf("size of the first is %d", c.Size())
	}
	if _, err := Dial(t.Context(), unixURI(sock, "c"), Options{}); err == nil {
		t.Error("an export that is not there was opened")
	}
}

func TestMaxConns(t *testing.T) {
	var ended atomic.Int32
	s := &Server{Exports: []Export{{Device: newMem(1000), MaxConns: 1}},
		Connected: func(string, net.Addr) func(error) { return func(error) { ended.Add(1) } }}
	sock := serve(t, s)
	c := dialTest(t, unixURI(sock, ""))
	if _, err := Dial(t.Context(), unixURI(sock, ""), Options{}); err == nil {
		t.Error("a second connection was let in")
	}
	c.Close()
	for range 500 { // the server learns of it soon
		c2, err := Dial(t.Context(), unixURI(sock, ""), Options{})
		if err == nil {
			c2.Close()
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for range 500 {
		if ended.Load() == 2 {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Errorf("%d connections ended, want 2", ended.Load())
}

func TestShutdown(t *testing.T) {
	dev := newMem(1 << 20)
	dev.block = make(chan struct{})
	s := &Server{Exports: []Export{{Device: dev}}}
	c := dialTest(t, unixURI(serve(t, s), ""))
	flushed := make(chan error)
	go func() { flushed <- c.Flush() }()
	time.Sleep(50 * time.Millisecond) // it waits
	down := make(chan error)
	go func() { down <- s.Shutdown(t.Context()) }()
	select {
	case err := <-down:
		t.Fatalf("Shutdown did not wait for a flush: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	close(dev.block)
	if err := <-flushed; err != nil {
		t.Errorf("the flush amid a shutdown: %v", err)
	}
	if err := <-down; err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	if err := c.Flush(); err == nil {
		t.Error("a flush succeeded without a server")
	}
}

func TestCancel(t *testing.T) {
	dev := newMem(1 << 20)
	dev.block = make(chan struct{})
	c := dialTest(t, unixURI(serve(t, &Server{Exports: []Export{{Device: dev}}}), ""))
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if err := c.FlushContext(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Flush: %v, want deadline exceeded", err)
	}
	// A read behind the flush, abandoned as well: its reply is dropped, and the connection goes on.
	b := make([]byte, 100_000)
	ctx, cancel = context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, err := c.ReadContext(ctx, b, 0); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Read: %v, want deadline exceeded", err)
	}
	close(dev.block)
	got := make([]byte, 100_000)
	if _, err := c.ReadAt(got, 0); err != nil || !bytes.Equal(got, dev.data[:len(got)]) {
		t.Errorf("a read after abandoned ones: %v", err)
	}
	if !bytes.Equal(b, make([]byte, len(b))) {
		t.Error("the buffer of an abandoned read was written to")
	}
}

// What a client sends at once is done in its order, whatever it is.
func TestOrder(t *testing.T) {
	dev := newMem(1 << 20)
	c := newScript(flagFixedNewstyle | flagNoZeroes)
	c.option(optExportName)
	var want []string
	for i := range 300 {
		q := request{typ: []uint16{cmdWrite, cmdFlush, cmdRead}[i%3], cookie: uint64(i)}
		switch q.typ {
		case cmdWrite:
			q.len = 512
			want = append(want, "write")
		case cmdRead:
			q.len = 512
		case cmdFlush:
			want = append(want, "flush")
		}
		c.request(q, bytes.Repeat([]byte{byte(i)}, map[bool]int{true: 512}[q.typ == cmdWrite])...)
	}
	c.request(request{typ: cmdDisc})
	if err := (&Server{Exports: []Export{{Device: dev}}}).ServeConn(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(dev.log, want) {
		t.Errorf("done in another order: %v", dev.log)
	}
	out := c.out.Bytes()[18+10:]
	for i := range 300 {
		if len(out) < simpleLen || be.Uint64(out[8:]) != uint64(i) {
			t.Fatalf("reply %d is %.16x", i, out)
		}
		out = out[simpleLen:]
		if i%3 == 2 {
			if out[0] != byte(i-2) {
				t.Errorf("read %d gives %d, not what write %d wrote", i, out[0], i-2)
			}
			out = out[512:]
		}
	}
}
