package xenblk

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"
)

// Where the ring's own words lie, and the first slot (struct blkif_sring).
const (
	reqProd  = 0
	reqEvent = 4
	rspProd  = 8
	rspEvent = 12
	slotsAt  = 64
)

// errRing says that a guest made nonsense of its ring.
var errRing = errors.New("a ring that cannot be")

// ring is the back end's side of a ring. take and sleep are for one goroutine; answer is safe for concurrent use.
//
// The answer to a request goes into the request's own slot, and becomes visible behind those to all earlier requests. So the
// requests from rsp_prod on are there as the guest wrote them until they are answered, and who comes after us finds them.
type ring struct {
	mem    []byte // shared with the guest, which may change any of it at any time
	layout layout
	size   uint32 // slots, a power of two
	cons   uint32 // requests that were taken

	mu    sync.Mutex
	prod  uint32 // answers that the guest may see
	ready []answer
}

// answer is one that may have to wait for those before it.
type answer struct {
	there  bool
	id     uint64
	op     uint8
	status int16
}

// slots is how many entries a ring has: the largest power of two that fits.
func slots(bytes, slot int) uint32 {
	n := uint32(1)
	for int(2*n)*slot <= bytes-slotsAt {
		n *= 2
	}
	return n
}

// newRing goes on with the ring in mem, whole pages, behind the last answer that was given.
func newRing(mem []byte, l layout) (*ring, error) {
	r := &ring{mem: mem, layout: l, size: slots(len(mem), l.slot)}
	r.prod = r.word(rspProd).Load()
	r.cons = r.prod
	r.ready = make([]answer, r.size)
	if n := r.word(reqProd).Load() - r.prod; n > r.size {
		return nil, fmt.Errorf("%w: %d requests wait in %d slots", errRing, n, r.size)
	}
	return r, nil
}

func (r *ring) word(off int) *atomic.Uint32 { return (*atomic.Uint32)(unsafe.Pointer(&r.mem[off])) }

func (r *ring) slot(i uint32) []byte {
	at := slotsAt + int(i&(r.size-1))*r.layout.slot
	return r.mem[at : at+r.layout.slot]
}

// take copies the next request, if there is one, and says which it is.
func (r *ring) take(buf *[maxSlot]byte) (index uint32, ok bool, err error) {
	prod := r.word(reqProd).Load()
	if prod == r.cons {
		return 0, false, nil
	}
	// A slot whose answer the guest cannot see yet is not the guest's to use again.
	r.mu.Lock()
	n := prod - r.prod
	r.mu.Unlock()
	if n > r.size || prod-r.cons > r.size {
		return 0, false, fmt.Errorf("%w: %d requests in %d slots", errRing, n, r.size)
	}
	copy(buf[:], r.slot(r.cons))
	index = r.cons
	r.cons++
	return index, true, nil
}

// sleep asks the guest to tell of the next request. It reports false if there is one already.
func (r *ring) sleep() bool {
	r.word(reqEvent).Store(r.cons + 1)
	return r.word(reqProd).Load() == r.cons
}

// answer answers a request that was taken, and reports whether the guest wants to be told.
func (r *ring) answer(index uint32, id uint64, op uint8, status int16) (notify bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ready[index&(r.size-1)] = answer{true, id, op, status}
	old := r.prod
	for {
		a := &r.ready[r.prod&(r.size-1)]
		if !a.there {
			break
		}
		putAnswer(r.slot(r.prod), a.id, a.op, a.status)
		*a = answer{}
		r.prod++
	}
	if r.prod == old {
		return false
	}
	r.word(rspProd).Store(r.prod)
	return r.prod-r.word(rspEvent).Load() < r.prod-old
}
