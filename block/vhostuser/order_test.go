package vhostuser

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"vmscope/block"
)

// model is an Observer that applies what it sees to a copy of the disk.
type model struct {
	mu   sync.Mutex
	disk []byte
	t    testing.TB
	// unwanted says of which writes the content is not taken.
	unwanted func(off int64) bool
	real     *memDisk
	seq      int
}

func (m *model) Reserve(off int64, n int) []byte {
	if m.unwanted != nil && m.unwanted(off) {
		return nil
	}
	return make([]byte, n)
}

func (m *model) Publish(w *block.Write) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.seq++
	to := m.disk[w.Off : w.Off+w.Len]
	switch {
	case w.Op == block.OpWrite && w.Data != nil:
		if int64(len(w.Data)) != w.Len {
			m.t.Errorf("%d bytes of %d", len(w.Data), w.Len)
		}
		copy(to, w.Data)
	case w.Op == block.OpWrite: // what is on the disk now is what was written: nobody else writes meanwhile
		m.real.mu.Lock()
		copy(to, m.real.data[w.Off:])
		m.real.mu.Unlock()
	case w.Op == block.OpZeroes || w.Op == block.OpDiscard:
		clear(to)
	}
}

// same compares the copy with the disk.
func (m *model) same() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.real.mu.Lock()
	defer m.real.mu.Unlock()
	return bytes.Equal(m.disk, m.real.data)
}

func (m *model) Abandon(off, n int64, _ []byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.real.mu.Lock()
	defer m.real.mu.Unlock()
	copy(m.disk[off:off+n], m.real.data[off:])
}

// Several queues write to the same few sectors: the observer's order is the disk's.
func TestOrder(t *testing.T) {
	d := newMemDisk()
	m := &model{t: t, disk: make([]byte, diskSize), real: d, unwanted: func(off int64) bool { return off%4096 == 0 }}
	x := serve(t, d, Options{Observer: m})
	fe := x.connect(t, newGuestMemory(t))
	fe.negotiate(someFeatures | featQueues)
	fe.inflight(4)
	var wg sync.WaitGroup
	for i := range 4 {
		q := fe.newQueue(i)
		q.start(0)
		at := dataAt + i*65536
		wg.Go(func() {
			for n := range 300 {
				le.PutUint64(x.mem.data[at:], uint64(i)<<32|uint64(n))
				le.PutUint64(x.mem.data[at+512:], uint64(i)<<32|uint64(n))
				kind := uint32(typeOut)
				if n%50 == 49 {
					kind = typeFlush
				}
				h, s := q.header(0, kind, rand.Uint64N(16))
				pieces := []piece{h, {uint64(at), 1024, false}, s}
				if kind == typeFlush {
					pieces = []piece{h, s}
				}
				q.chain(q.descs(), 0, pieces...)
				before := 0
				m.mu.Lock()
				before = m.seq
				m.mu.Unlock()
				q.offer(0)
				q.ringBell()
				if _, _, err := q.wait(10 * time.Second); err != nil || q.status(0) != statusOK {
					t.Errorf("queue %d: status %d, %v", i, q.status(0), err)
					return
				}
				m.mu.Lock()
				if m.seq == before {
					t.Error("the guest heard of a write before the observer")
				}
				m.mu.Unlock()
			}
		})
	}
	wg.Wait()
	if !m.same() {
		t.Error("the observer's disk is another")
	}
}

// The guest changes the data all the time while it is written: the observer sees what the disk got.
func TestChangingData(t *testing.T) {
	d := newMemDisk()
	m := &model{t: t, disk: make([]byte, diskSize), real: d}
	x := serve(t, d, Options{Observer: m})
	fe := x.connect(t, newGuestMemory(t))
	fe.negotiate(someFeatures)
	q := fe.newQueue(0)
	q.start(0)
	halt, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for i := byte(0); ; i++ {
			select {
			case <-halt:
				return
			default:
				for j := dataAt; j < dataAt+65536; j += 64 {
					x.mem.data[j] = i
				}
			}
		}
	}()
	for i := range uint64(100) {
		if status, _ := q.do(typeOut, i*16, piece{dataAt, 65536, false}); status != statusOK {
			t.Errorf("status %d", status)
		}
	}
	close(halt)
	<-done
	if !m.same() {
		t.Error("the observer saw something else than the disk")
	}
}
