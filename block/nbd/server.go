package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"vmscope/internal/hot"
)

// Server serves exports. Its fields are set before the first call and not changed after.
//
// The path of a write, which a tap builds on: the connection's goroutine reads a request's header, checks it, and calls
// WritePayload of the export's device while the payload is still in the socket. The device asks for a place of its own
// (a slot of a ring in shared memory) and calls Payload.Read with it: the bytes go from the socket there and nowhere else.
// When WritePayload returns, the reply is sent (together with those of other requests that the client has sent at once).
//
//	func (t *tap) WritePayload(p *nbd.Payload, off int64, f nbd.Flags) error {
//		slot := t.ring.reserve(p.Len())
//		if slot == nil { // full: the write is lost to the reader, but answered
//			t.lost()
//			return nil // the server drops the payload
//		}
//		if _, err := p.Read(slot); err != nil {
//			t.ring.abandon(slot)
//			return err
//		}
//		t.ring.commit(slot, off, f)
//		return nil
//	}
//
// One connection is one order: a request begins when the one before it has ended, so that a device that is given to one
// connection (Export.MaxConns 1) sees a total order without any lock.
type Server struct {
	Exports []Export
	// TLS is offered where it is set, and insisted on with TLSRequired. Client certificates are the tls.Config's matter.
	TLS         *tls.Config
	TLSRequired bool
	// HandshakeTimeout bounds the time from accept to the first request; 0 means 10 s.
	HandshakeTimeout time.Duration
	// MaxConns bounds the connections at any time; a further one is closed at once. 0 means 128.
	MaxConns int
	// Dedicated tells that this process does little but serve. Requests then cost less, those that come alone a fraction;
	// but other goroutines may have to wait some milliseconds for their turn, or for a slow disk.
	Dedicated bool
	// Connected is called, if set, when a client has chosen an export, before its first request. What it returns, if not
	// nil, is called with the reason when that connection has ended: nil for a client that took its leave.
	Connected func(export string, remote net.Addr) func(error)
	// Failed is called, if set, with the reason when a connection ended before an export was chosen, or could not be
	// accepted.
	Failed func(remote net.Addr, err error)

	closing atomic.Bool
	mu      sync.Mutex
	lns     map[net.Listener]struct{}
	conns   map[*serverConn]struct{}
	joined  map[*Export]int
	idle    chan struct{} // closed when the last connection has ended after Shutdown
}

// Serve accepts and serves connections until ctx ends, Shutdown or Close is called, or the listener fails. It gives nil if
// it was told to end. It closes ln. A listener of a Unix socket that another process will go on to use wants
// SetUnlinkOnClose(false). When ctx ends, that is a Close.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	defer ln.Close()
	if s.Dedicated {
		hot.Dedicate()
	}
	s.mu.Lock()
	if s.lns == nil {
		s.lns = map[net.Listener]struct{}{}
	}
	s.lns[ln] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.lns, ln)
		s.mu.Unlock()
	}()
	if s.closing.Load() {
		return ErrShutdown
	}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	pause := time.Millisecond
	for {
		conn, err := ln.Accept()
		switch {
		case err == nil:
			pause = time.Millisecond
			go func() {
				if err := s.ServeConn(ctx, conn); errors.As(err, new(*refusedError)) && s.Failed != nil {
					s.Failed(conn.RemoteAddr(), err)
				}
			}()
		case s.closing.Load():
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			// Those who are connected go on; who knocks waits.
			if s.Failed != nil {
				s.Failed(ln.Addr(), err)
			}
			time.Sleep(pause)
			pause = min(2*pause, time.Second)
		default:
			return fmt.Errorf("nbd: accept: %w", err)
		}
	}
}

// refusedError says why a client did not get to an export.
type refusedError struct{ err error }

func (e *refusedError) Error() string { return e.err.Error() }
func (e *refusedError) Unwrap() error { return e.err }

// ServeConn serves one connection until its end, and closes it. It gives nil if the client took its leave.
func (s *Server) ServeConn(ctx context.Context, conn net.Conn) error {
	c := &serverConn{raw: conn}
	if !s.enter(c) {
		conn.Close()
		return &refusedError{fmt.Errorf("nbd: too many connections, or %w", ErrShutdown)}
	}
	defer s.leave(c)
	defer context.AfterFunc(ctx, c.abort)()
	timeout := s.HandshakeTimeout
	if timeout == 0 {
		timeout = 10 * time.Second
	}
	conn.SetDeadline(time.Now().Add(timeout))
	if c.ending.Load() != 0 { // what it set was overwritten
		conn.SetDeadline(longAgo)
	}
	ss := &session{srv: s, conn: conn}
	if err := ss.negotiate(ctx); err != nil {
		if ss.export != nil {
			s.part(ss.export)
		}
		ss.conn.Close()
		if err == errLeft || err == io.EOF {
			return nil
		}
		return &refusedError{fmt.Errorf("nbd: handshake: %w", err)}
	}
	defer s.part(ss.export)
	conn.SetDeadline(time.Time{})
	var ended func(error)
	if s.Connected != nil {
		ended = s.Connected(ss.export.Name, conn.RemoteAddr())
	}
	err := c.serve(ss)
	if ended != nil {
		ended(err)
	}
	return err
}

// Shutdown stops listening, lets requests that are being handled end, answers further ones with ESHUTDOWN, and closes
// each connection as soon as nothing more comes from it. When ctx ends first, it closes what is left and gives ctx's error.
func (s *Server) Shutdown(ctx context.Context) error {
	idle := s.begin(func(c *serverConn) { c.drain() })
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		s.Close()
		return ctx.Err()
	}
}

// Close stops listening and breaks all connections off. It waits until what devices were asked for is done.
func (s *Server) Close() error {
	<-s.begin(func(c *serverConn) { c.abort() })
	return nil
}

// begin begins a shutdown and gives a channel that is closed when no connection is left.
func (s *Server) begin(end func(*serverConn)) <-chan struct{} {
	s.closing.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for ln := range s.lns {
		ln.Close()
	}
	for c := range s.conns {
		end(c)
	}
	if s.idle == nil {
		s.idle = make(chan struct{})
		if len(s.conns) == 0 {
			close(s.idle)
		}
	}
	return s.idle
}

func (s *Server) enter(c *serverConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	most := s.MaxConns
	if most == 0 {
		most = 128
	}
	if s.closing.Load() || len(s.conns) >= most {
		return false
	}
	if s.conns == nil {
		s.conns = map[*serverConn]struct{}{}
	}
	s.conns[c] = struct{}{}
	return true
}

func (s *Server) leave(c *serverConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if s.idle != nil && len(s.conns) == 0 {
		close(s.idle)
	}
}

// join counts a connection to e, if it may have one more.
func (s *Server) join(e *Export) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.joined == nil {
		s.joined = map[*Export]int{}
	}
	if e.MaxConns > 0 && s.joined[e] >= e.MaxConns {
		return false
	}
	s.joined[e]++
	return true
}

func (s *Server) part(e *Export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.joined[e]--
}

// lookup finds an export; nil if there is none. A client that names none gets the first, if none is named "".
func (s *Server) lookup(name string) *Export {
	for i := range s.Exports {
		if s.Exports[i].Name == name {
			return &s.Exports[i]
		}
	}
	if name == "" && len(s.Exports) > 0 {
		return &s.Exports[0]
	}
	return nil
}
