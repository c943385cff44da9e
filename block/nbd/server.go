package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"vmscope/block"
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
	// Connected is called, if set, when a client has chosen an export, before its first request. What it returns, if not
	// nil, is called with the reason when that connection has ended: nil for a client that took its leave.
	Connected func(export string, remote net.Addr) func(error)
}

// Export is one disk under a name.
type Export struct {
	Name        string // "" is the one that a client gets that asks for none
	Description string // for people
	Device      block.Device
	ReadOnly    bool // also where the device could be written
	MaxConns    int  // connections at any time; 0: as the server's
	// MinBlock is the alignment that requests must have, a power of two; 0 means 1. PreferredBlock is that which is
	// fastest; 0 means 4096. MaxPayload bounds the length of reads and writes; 0 means 32 MiB, more than 64 MiB is not taken.
	MinBlock, PreferredBlock, MaxPayload int
}

// Serve accepts and serves connections until ctx ends, Shutdown is called, or the listener fails. It closes ln. A listener
// of a Unix socket that another process will go on to use wants SetUnlinkOnClose(false).
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	return errors.ErrUnsupported
}
