package vhostuser

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"unsafe"

	"vmscope/mem"
)

// Flags of descriptors and rings (virtio 1.2, 2.7).
const (
	descSize     = 16
	descNext     = 1
	descWrite    = 2 // the device writes, it does not read
	descIndirect = 4

	availNoInterrupt = 1
	usedNoNotify     = 1

	maxQueueSize = 1 << 15
	// maxChain bounds the descriptors of one request, direct and indirect together, as QEMU does (VIRTQUEUE_MAX_SIZE). A
	// driver must not make a chain longer than its queue, which is at most as large there.
	maxChain = 1024
)

// ringAddr is where the front end has a ring mapped.
type ringAddr struct{ desc, avail, used uint64 }

// ring is a split virtqueue in the guest's memory. All in it but what we write was written by the guest, which may write
// at any time: each field is loaded once.
//
// The words that order the two sides are loaded and stored atomically, as words of 32 bits. The parts must be aligned for
// that, which is 2 bytes more than virtio asks of the available ring; no driver is known that would not.
type ring struct {
	num   uint32 // a power of two
	desc  []byte
	avail []byte
	used  []byte
}

// newRing finds a ring in the memory.
func (t *table) newRing(a ringAddr, num uint32, events bool) (ring, error) {
	extra := uint64(0)
	if events {
		extra = 2
	}
	r := ring{
		num:   num,
		desc:  t.user(a.desc, uint64(num)*descSize),
		avail: t.user(a.avail, 4+2*uint64(num)+extra),
		used:  t.user(a.used, 4+8*uint64(num)+extra),
	}
	if r.desc == nil || r.avail == nil || r.used == nil {
		return ring{}, fmt.Errorf("vhost-user: ring of %d at %#x, %#x, %#x: %w", num, a.desc, a.avail, a.used, errMemory)
	}
	if uintptr(unsafe.Pointer(&r.avail[0]))%4 != 0 || uintptr(unsafe.Pointer(&r.used[0]))%4 != 0 {
		return ring{}, fmt.Errorf("vhost-user: ring at %#x, %#x is not aligned: %w", a.avail, a.used, mem.ErrInconsistent)
	}
	return r, nil
}

func word(b []byte, off int) *uint32 { return (*uint32)(unsafe.Pointer(&b[off&^3])) }

// half loads the 16 bits at off, which is even.
func half(b []byte, off int) uint16 {
	return uint16(atomic.LoadUint32(word(b, off)) >> (8 * (off & 2)))
}

// available is the guest's index: how many requests it has put in so far, modulo 2^16.
func (r *ring) available() uint16 { return half(r.avail, 2) }

// head is the first descriptor of the request at index i of the available ring.
func (r *ring) head(i uint16) uint16 {
	return binary.LittleEndian.Uint16(r.avail[4+2*(uint32(i)&(r.num-1)):])
}

// usedIdx is our index as it stands in the guest's memory. Only the start of a ring reads it.
func (r *ring) usedIdx() uint16 { return half(r.used, 2) }

// putUsed fills an entry of the used ring, which the guest sees by publish.
func (r *ring) putUsed(i, head uint16, n uint32) {
	b := r.used[4+8*(uint32(i)&(r.num-1)):]
	binary.LittleEndian.PutUint32(b, uint32(head))
	binary.LittleEndian.PutUint32(b[4:], n)
}

// publish gives the guest our index and our flags, which share a word that only we write.
func (r *ring) publish(idx uint16, flags uint16) {
	atomic.StoreUint32(word(r.used, 0), uint32(flags)|uint32(idx)<<16)
}

// noInterrupt reports whether the guest asked not to be told of used requests.
func (r *ring) noInterrupt() bool { return half(r.avail, 0)&availNoInterrupt != 0 }

// usedEvent is the index at which the guest wants to be told, with VIRTIO_RING_F_EVENT_IDX.
func (r *ring) usedEvent() uint16 { return half(r.avail, 4+2*int(r.num)) }

// setAvailEvent says at which index we want to be told. The other half of its word is not ours, so it is exchanged; a
// guest that writes there all the time does not hold us up.
func (r *ring) setAvailEvent(i uint16) {
	off := 4 + 8*int(r.num)
	p, shift := word(r.used, off), 8*(off&2)
	for range 64 {
		old := atomic.LoadUint32(p)
		if atomic.CompareAndSwapUint32(p, old, old&^(0xffff<<shift)|uint32(i)<<shift) {
			return
		}
	}
	binary.LittleEndian.PutUint16(r.used[off:], i)
}

// crossed reports whether the index event lies in (old, now]: the other side wants to be told of it.
func crossed(event, now, old uint16) bool { return now-event-1 < now-old }

// descriptor is a copy of one.
type descriptor struct {
	addr        uint64
	len         uint32
	flags, next uint16
}

func readDescriptor(table []byte, i uint32) descriptor {
	b := table[i*descSize : i*descSize+descSize]
	return descriptor{
		addr:  binary.LittleEndian.Uint64(b),
		len:   binary.LittleEndian.Uint32(b[8:]),
		flags: binary.LittleEndian.Uint16(b[12:]),
		next:  binary.LittleEndian.Uint16(b[14:]),
	}
}

// chain is a request's memory, as the guest's descriptors tell it.
type chain struct {
	head  uint16
	read  [][]byte // what the device reads, in order
	write [][]byte // what the device writes
	// bad says that a piece of it lies outside of the guest's memory; the rest is there. noEnd: the last piece that the
	// device writes is such.
	bad   error
	noEnd bool
	// indirect is the copy of an indirect table. The arrays behind read and write are kept for the next request.
	indirect              []byte
	readArray, writeArray [][]byte
}

// maxPieces bounds the pieces of a chain, which are more than its descriptors where memory regions meet.
const maxPieces = 2 * maxChain

// gather follows the chain at head. An error means that the ring itself makes no sense. Memory that is not there is no
// such error: it is noted in c.bad.
func (c *chain) gather(r *ring, t *table, head uint16) error {
	c.head, c.bad, c.noEnd = head, nil, false
	c.read, c.write = c.readArray[:0], c.writeArray[:0]
	defer func() { c.readArray, c.writeArray = c.read, c.write }()
	table, size := r.desc, r.num
	i := uint32(head)
	indirect := false
	// Each step takes one descriptor. A chain that is longer than its table goes round in it.
	for steps := uint32(1); ; steps++ {
		if i >= size {
			return fmt.Errorf("vhost-user: descriptor %d of %d: %w", i, size, mem.ErrInconsistent)
		}
		if steps > size || steps > maxChain {
			return fmt.Errorf("vhost-user: descriptor chain from %d on has no end: %w", head, mem.ErrInconsistent)
		}
		d := readDescriptor(table, i)
		if d.flags&descIndirect != 0 {
			if indirect || d.flags&descNext != 0 || d.len == 0 || d.len%descSize != 0 || d.len > maxChain*descSize {
				return fmt.Errorf("vhost-user: indirect table of %d bytes, flags %#x: %w", d.len, d.flags, mem.ErrInconsistent)
			}
			if !c.copyTable(t, d.addr, d.len) {
				return fmt.Errorf("vhost-user: indirect table at %#x: %w", d.addr, errMemory)
			}
			table, size, i, steps, indirect = c.indirect, d.len/descSize, 0, 0, true
			continue
		}
		if err := c.add(t, d); err != nil {
			return err
		}
		if d.flags&descNext == 0 {
			return nil
		}
		i = uint32(d.next)
	}
}

// copyTable copies an indirect table, so that it cannot change while it is read.
func (c *chain) copyTable(t *table, addr uint64, n uint32) bool {
	c.indirect = c.indirect[:0]
	for n > 0 {
		b := t.slice(addr, uint64(n))
		if b == nil {
			return false
		}
		c.indirect = append(c.indirect, b...)
		addr, n = addr+uint64(len(b)), n-uint32(len(b))
	}
	return true
}

// add takes the memory of one descriptor, in as many pieces as there are regions.
func (c *chain) add(t *table, d descriptor) error {
	list := &c.read
	if d.flags&descWrite != 0 {
		list = &c.write
	} else if len(c.write) > 0 {
		return fmt.Errorf("vhost-user: chain from %d on is read again behind what is written: %w", c.head, mem.ErrInconsistent)
	}
	if d.flags&descWrite != 0 && d.len > 0 {
		c.noEnd = false
	}
	for addr, n := d.addr, uint64(d.len); n > 0; {
		b := t.slice(addr, n)
		if b == nil {
			c.bad = fmt.Errorf("vhost-user: %d bytes at %#x: %w", n, addr, errMemory)
			c.noEnd = c.noEnd || d.flags&descWrite != 0
			return nil
		}
		if len(c.read)+len(c.write) >= maxPieces {
			return fmt.Errorf("vhost-user: chain from %d on is in more than %d pieces: %w", c.head, maxPieces, mem.ErrInconsistent)
		}
		*list = append(*list, b)
		addr, n = addr+uint64(len(b)), n-uint64(len(b))
	}
	return nil
}

// take copies the next bytes of what the device reads to p, and reports whether there were enough.
func (c *chain) take(p []byte) bool {
	for len(p) > 0 {
		if len(c.read) == 0 {
			return false
		}
		n := copy(p, c.read[0])
		p = p[n:]
		if c.read[0] = c.read[0][n:]; len(c.read[0]) == 0 {
			c.read = c.read[1:]
		}
	}
	return true
}

// last takes the last byte of what the device writes: the request's status. Nil if there is none.
func (c *chain) last() []byte {
	n := len(c.write)
	if n == 0 {
		return nil
	}
	b := c.write[n-1]
	end := len(b) - 1
	if c.write[n-1] = b[:end]; end == 0 {
		c.write = c.write[:n-1]
	}
	return b[end:]
}

// size is the sum of the pieces' lengths.
func size(list [][]byte) (n int64) {
	for _, b := range list {
		n += int64(len(b))
	}
	return n
}
