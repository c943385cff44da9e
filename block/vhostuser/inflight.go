package vhostuser

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"os"
	"slices"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// inflight is the buffer in which the requests are noted that were taken from a ring and not given back: memory that the
// front end keeps when we die, and hands to the next back end. For the layout and the order of all steps see "Inflight
// I/O tracking" in docs/interop/vhost-user.rst.
//
// It is the front end's, not the guest's, yet nothing in it is believed further than a bad value could do harm.
type inflight struct {
	file      *os.File
	data      []byte
	queues    int
	queueSize int // that the front end names
	stride    int // bytes of one queue's part
	refs      atomic.Int32
}

const (
	inflightHeader  = 16 // features u64, version u16, desc_num u16, last_batch_head u16, used_idx u16
	inflightEntry   = 16 // inflight u8, padding, next u16 at 6, counter u64 at 8
	inflightVersion = 1
)

func inflightStride(queueSize int) int {
	return (inflightHeader + queueSize*inflightEntry + 63) &^ 63
}

// roomyQueue is for how many entries of a ring a buffer has room at least: as many as QEMU lets a ring have
// (VIRTQUEUE_MAX_SIZE). Rings may be larger than the size that the front end names: under QEMU 10, 256 for 128.
const roomyQueue = 1024

// newInflight makes a buffer that starts as zeroes.
func newInflight(queues, queueSize int) (*inflight, error) {
	n := queues * inflightStride(max(queueSize, roomyQueue))
	fd, err := unix.MemfdCreate("vhost-user inflight", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memory for requests in flight: %w", err)
	}
	f := os.NewFile(uintptr(fd), "inflight")
	if err := unix.Ftruncate(fd, int64(n)); err != nil {
		f.Close()
		return nil, fmt.Errorf("memory for requests in flight: %w", err)
	}
	// Nobody can make it shorter under us.
	unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_SEAL)
	return openInflight(f, 0, uint64(n), queues, queueSize)
}

// openInflight maps a buffer; it owns f from then on, also if there is an error.
func openInflight(f *os.File, off, n uint64, queues, queueSize int) (*inflight, error) {
	fail := func(err error) (*inflight, error) {
		f.Close()
		return nil, err
	}
	if queues < 1 || queueSize < 1 || queueSize > maxQueueSize || queues > maxQueues ||
		n < uint64(queues*inflightStride(queueSize)) || n > 1<<30 || off%uint64(os.Getpagesize()) != 0 || off > 1<<40 {
		return fail(fmt.Errorf("%w: in-flight memory of %d bytes at %d for %d queues of %d", ErrProtocol, n, off, queues, queueSize))
	}
	if st, err := f.Stat(); err != nil || st.Size() < int64(off+n) {
		return fail(fmt.Errorf("%w: in-flight memory is shorter than %d bytes", ErrProtocol, off+n))
	}
	// A front end keeps the size of the buffer, but names its own size of queues with it.
	stride := int(n/uint64(queues)) &^ 63
	data, err := unix.Mmap(int(f.Fd()), int64(off), int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fail(fmt.Errorf("map in-flight memory: %w", err))
	}
	x := &inflight{file: f, data: data, queues: queues, queueSize: queueSize, stride: stride}
	x.refs.Store(1)
	return x, nil
}

func (x *inflight) acquire() *inflight {
	if x != nil {
		x.refs.Add(1)
	}
	return x
}

func (x *inflight) release() {
	if x != nil && x.refs.Add(-1) == 0 {
		unix.Munmap(x.data)
		x.file.Close()
	}
}

// describe is the payload that goes with the buffer.
func (x *inflight) describe() []byte {
	b := binary.LittleEndian.AppendUint64(nil, uint64(len(x.data)))
	b = binary.LittleEndian.AppendUint64(b, 0)
	b = binary.LittleEndian.AppendUint16(b, uint16(x.queues))
	return binary.LittleEndian.AppendUint16(b, uint16(x.queueSize))
}

// queue is the part of one queue, whose ring has num entries. The zero value is returned without a buffer: it notes
// nothing.
func (x *inflight) queue(i int, num uint32) (flight, error) {
	if x == nil {
		return flight{}, nil
	}
	n := x.stride
	if i >= x.queues || inflightStride(int(num)) > n {
		return flight{}, fmt.Errorf("%w: queue %d of %d entries, in-flight memory is for %d of %d", ErrProtocol, i, num, x.queues, (n-inflightHeader)/inflightEntry)
	}
	return flight{b: x.data[i*n : (i+1)*n : (i+1)*n], num: num}, nil
}

// flight is one queue's part of the buffer.
type flight struct {
	b       []byte
	num     uint32
	counter uint64
}

func (f *flight) on() bool { return f.b != nil }

func (f *flight) entry(head uint16) int { return inflightHeader + int(head)*inflightEntry }

func (f *flight) u16(off int) uint16 { return binary.LittleEndian.Uint16(f.b[off:]) }

func (f *flight) put16(off int, v uint16) { binary.LittleEndian.PutUint16(f.b[off:], v) }

func (f *flight) isSet(head uint16) bool {
	return atomic.LoadUint32(word(f.b, f.entry(head)))&0xff != 0
}

func (f *flight) set(head uint16, on uint32) {
	p := word(f.b, f.entry(head))
	atomic.StoreUint32(p, atomic.LoadUint32(p)&^0xff|on)
}

// take notes that the request at head was taken from the ring.
func (f *flight) take(head uint16) {
	if f.b == nil {
		return
	}
	binary.LittleEndian.PutUint64(f.b[f.entry(head)+8:], f.counter)
	f.counter++
	f.set(head, 1)
}

// give notes that the request at head is about to be given back. When the guest can see that, gave must be called.
func (f *flight) give(head uint16) {
	if f.b == nil {
		return
	}
	f.put16(f.entry(head)+6, f.u16(12))
	f.put16(12, head)
}

// gave notes that the guest sees the request at head as used, our index being idx.
func (f *flight) gave(head, idx uint16) {
	if f.b == nil {
		return
	}
	f.set(head, 0)
	f.put16(14, idx)
}

// restart gives the requests that a back end before us had taken and not given back, in the order in which it had
// taken them. used is our index as the guest sees it. ok is false for a buffer that has not been used.
func (f *flight) restart(used uint16) (heads []uint16, ok bool) {
	if f.u16(8) != inflightVersion {
		clear(f.b)
		f.put16(10, uint16(f.num))
		f.put16(14, used)
		f.put16(8, inflightVersion)
		return nil, false
	}
	// Death between the guest's seeing and the note of it: those are done.
	batch := used - f.u16(14)
	for head := f.u16(12); batch > 0 && uint32(batch) <= f.num && uint32(head) < f.num; batch-- {
		f.set(head, 0)
		head = f.u16(f.entry(head) + 6)
	}
	f.put16(14, used)
	for head := range f.num {
		if f.isSet(uint16(head)) {
			heads = append(heads, uint16(head))
		}
	}
	count := func(head uint16) uint64 { return binary.LittleEndian.Uint64(f.b[f.entry(head)+8:]) }
	slices.SortStableFunc(heads, func(a, b uint16) int { return cmp.Compare(count(a), count(b)) })
	for _, head := range heads {
		f.counter = max(f.counter, count(head)+1)
	}
	return heads, true
}
