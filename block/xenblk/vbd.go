package xenblk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"vmscope/internal/xenbus"
)

// States of either end of a device (enum xenbus_state).
const (
	stateNone         = 0 // it is not there
	stateInitialising = 1
	stateInitWait     = 2
	stateInitialised  = 3
	stateConnected    = 4
	stateClosing      = 5
	stateClosed       = 6
)

// session is one vbd that is served. It is for one goroutine.
type session struct {
	srv   *Server
	host  *Host
	vbd   Vbd
	front *xenbus.Watch
	back  *xenbus.Watch

	offered bool
	queues  []*queue
	left    func() // of Options.Connected
	was     uint32 // the front end's state at the last look
	refused bool   // until the front end begins anew: what it says makes no sense

	broken chan error // of queues
}

// ServeVbd serves a vbd until it is removed, or ctx ends.
func (s *Server) ServeVbd(ctx context.Context, h *Host, v Vbd) (err error) {
	x := &session{srv: s, host: h, vbd: v, broken: make(chan error, maxQueues)}
	if x.back, err = h.Store.Watch(ctx, v.Back); err != nil {
		return err
	}
	defer x.back.Close()
	if x.front, err = h.Store.Watch(ctx, v.Front+"/state"); err != nil {
		return err
	}
	defer x.front.Close()
	defer x.disconnect()
	for {
		over, err := x.step(ctx)
		if over || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-x.back.Changes():
			x.back.Drain()
		case <-x.front.Changes():
			x.front.Drain()
		case err := <-x.broken:
			s.report(err)
			if err := x.refuse(ctx); err != nil {
				return err
			}
		}
	}
}

// step looks at both ends' states and does what they ask for. over: the vbd is not needed any more.
func (x *session) step(ctx context.Context) (over bool, err error) {
	store := x.host.Store
	back, err := number(ctx, store, x.vbd.Back+"/state", stateNone)
	if err != nil {
		return false, err
	}
	front, err := number(ctx, store, x.vbd.Front+"/state", stateNone)
	if err != nil {
		return false, err
	}
	online, err := number(ctx, store, x.vbd.Back+"/online", 1)
	if err != nil {
		return false, err
	}
	was := x.was
	x.was = front
	if back == stateNone {
		x.disconnect()
		return true, nil
	}
	switch front {
	case stateNone, stateClosed:
		// The guest is done with it, or the toolstack does not wait for the guest.
		x.disconnect()
		x.refused = false
		over = front == stateNone || online == 0
		if back != stateClosed {
			err = x.state(ctx, stateClosed)
		}
		return over, err
	case stateInitialising:
		x.disconnect() // it was started anew without a word
		x.refused = false
		if back == stateClosing && online == 0 {
			return true, x.state(ctx, stateClosed) // it never came to be used
		}
		if back == stateInitWait && x.offered {
			return false, nil
		}
		return false, x.offer(ctx)
	case stateInitialised, stateConnected:
		if x.refused {
			return false, nil
		}
		if front == stateInitialised && was == stateConnected {
			x.disconnect() // it has other rings now
		}
		if x.queues == nil {
			if err := x.connect(ctx); err != nil {
				if ctx.Err() != nil {
					return false, err
				}
				x.srv.report(&VbdError{x.vbd, err})
				return false, x.refuse(ctx)
			}
		}
		if back != stateConnected && back != stateClosing {
			return false, x.state(ctx, stateConnected)
		}
	case stateClosing:
		// It may still have requests under way.
		if back != stateClosing {
			return false, x.state(ctx, stateClosing)
		}
	}
	return false, nil
}

// state sets our end's state, unless the vbd was removed.
func (x *session) state(ctx context.Context, n int) error {
	path := x.vbd.Back + "/state"
	err := x.host.Store.Transaction(ctx, func(t *xenbus.Tx) error {
		now, err := t.Read(ctx, path)
		if err != nil {
			return err
		}
		if text := strconv.Itoa(n); text != now {
			return t.Write(ctx, path, text)
		}
		return nil
	})
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the watch tells
	}
	return err
}

// refuse ends a connection that makes no sense, and waits for the front end to begin anew.
func (x *session) refuse(ctx context.Context) error {
	x.disconnect()
	x.refused = true
	return x.state(ctx, stateClosing)
}

// offer tells the front end what it may ask for.
func (x *session) offer(ctx context.Context) error {
	if x.host.Claim != nil {
		if err := x.host.Claim(x.vbd); err != nil {
			return err
		}
	}
	if err := writeAll(ctx, x.host.Store, x.vbd.Back, x.srv.offers()); err != nil {
		return err
	}
	x.offered = true
	return x.state(ctx, stateInitWait)
}

// connect maps the rings and begins to serve them.
func (x *session) connect(ctx context.Context) (err error) {
	if x.host.Claim != nil {
		if err := x.host.Claim(x.vbd); err != nil {
			return err
		}
	}
	keys, err := readFront(ctx, x.host.Store, x.vbd.Front)
	if err != nil {
		return fmt.Errorf("what the front end asks for: %w", err)
	}
	discard, err := number(ctx, x.host.Store, x.vbd.Back+"/discard-enable", 1)
	if err != nil {
		return err
	}
	if err := writeAll(ctx, x.host.Store, x.vbd.Back, x.srv.features(discard != 0, x.srv.opts.ReadOnly || x.vbd.ReadOnly())); err != nil {
		return err
	}
	persistent := keys.persistent && !x.srv.opts.NoPersistent
	var queues []*queue
	for i, k := range keys.rings {
		q, err := newQueue(ctx, x.srv, x.host, x.vbd, i, k, keys.layout, persistent)
		if err != nil {
			for _, q := range queues {
				q.drop()
			}
			return err
		}
		queues = append(queues, q)
	}
	if x.srv.opts.Connected != nil {
		x.left = x.srv.opts.Connected(x.vbd)
	}
	x.queues = queues
	for _, q := range queues {
		q.start(func(err error) {
			select {
			case x.broken <- err:
			default:
			}
		})
	}
	return nil
}

// disconnect ends the queues. What they took is answered first.
func (x *session) disconnect() {
	for _, q := range x.queues {
		q.close()
	}
	x.queues = nil
	if x.left != nil {
		x.left()
		x.left = nil
	}
	for {
		select {
		case <-x.broken: // of queues that are gone
		default:
			return
		}
	}
}
