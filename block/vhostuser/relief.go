package vhostuser

import "vmscope/mem"

// aside does the rest of a request, a flush, in the queue's own goroutine, while another stands in for it: it serves what
// the guest asks for meanwhile, so that a read does not wait for the flush. Most often nothing comes, and then no other
// thread was woken for the flush. False if that cannot be: nobody can stand in, or there are requests waiting already.
//
// Whoever serves the ring holds r.turn.
func (r *run) aside(o *op, rest func() (status byte, n int64)) bool {
	if r.relief == nil || r.away || !r.flight.on() || !r.listen() {
		return false
	}
	tab := r.tab.acquire() // where o's status lies; whoever stands in may find another
	defer tab.release()
	r.away = true
	r.turn.Unlock()
	defer func() { // also where the guest's memory faults
		r.turn.Lock()
		r.away = false
	}()
	armed := r.relief.Arm() == nil // else what comes has to wait
	status, n := rest()
	if armed {
		r.relief.Disarm()
	}
	r.complete(o, status, n, true)
	return true
}

// standIn is the goroutine that serves the ring while the queue's own waits for a flush.
func (r *run) standIn() {
	defer r.besides.Done()
	for r.relief.Await() == nil {
		if !r.turn.TryLock() {
			continue // the flush is done, and who serves the ring looks at it anyway
		}
		if r.away && r.broken == nil {
			if r.broken = mem.Guard(r.serveNow); r.broken == nil {
				r.broken = r.relief.Arm()
			}
		}
		r.turn.Unlock()
	}
}

// serveNow serves what is in the ring, and goes when nothing is.
func (r *run) serveNow() error {
	for {
		if err := r.take(0); err != nil {
			return err
		}
		if err := r.drainRing(); err != nil {
			return err
		}
		if r.listen() {
			return nil
		}
	}
}
