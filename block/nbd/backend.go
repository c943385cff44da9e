package nbd

import (
	"errors"
	"os"
)

// What an export can do beyond being read (block.Device) is told by the methods that its device has. All offsets and
// lengths are bytes, and lie inside of the device: the server has checked them. With one connection the calls come one
// after the other, in the order of the client's requests; each connection has a goroutine of its own, so that a device
// that is exported to several must be safe for concurrent use.
//
// Errors become the protocol's: a syscall.Errno that the protocol knows as itself, errors.ErrUnsupported as ENOTSUP,
// anything else as EIO; the text reaches the client where it takes structured replies.
type (
	// PayloadWriter takes the payload of a write where it wants it: the call comes when the request's header was read,
	// with the payload still in the socket, so that the device chooses what it is read into (see Payload), or that it is
	// not read into anything. What the device leaves is dropped. The write is answered when the call returns: with
	// success only if it gives nil. FUA in f: what was written is durable by then.
	//
	// p belongs to the server and is void after the call. An error of p's methods is to be returned as it is (wrapped or
	// not): it means that the client is gone, or broke off amid the payload, and ends the connection.
	PayloadWriter interface {
		WritePayload(p *Payload, off int64, f Flags) error
	}

	// Flusher makes all writes that were completed before the call durable. A device that can be written and has no
	// Flush is volatile by choice: then neither flush nor FUA is offered.
	Flusher interface {
		Flush() error
	}

	// Trimmer takes the hint that nobody wants the content of n bytes at off any more. They may read as anything then.
	Trimmer interface {
		Trim(off, n int64, f Flags) error
	}

	// Zeroer makes n bytes at off read as zeroes. Without NoHole in f it may free the space. With FastZero it gives
	// errors.ErrUnsupported (and has done nothing) where that is no faster than writing zeroes. For a device without it
	// the server writes zeroes.
	Zeroer interface {
		Zero(off, n int64, f Flags) error
	}

	// Extenter tells what is known of n bytes at off without reading them: extents in order and without gaps from off on,
	// at most max (which is 1 or more) of them, at least one, together not necessarily n bytes. Their sum may exceed n.
	// The result may be appended to dst, which is empty.
	Extenter interface {
		Extents(dst []Extent, off, n int64, max int) ([]Extent, error)
	}

	// Cacher is told that n bytes at off will be read soon.
	Cacher interface {
		Cache(off, n int64) error
	}

	// MultiConner tells whether a flush on one connection covers the writes completed on all. Without it: no.
	MultiConner interface {
		MultiConn() bool
	}

	// ReadOnlyer tells that a device that has methods for writing does not want to be written.
	ReadOnlyer interface {
		ReadOnly() bool
	}

	// Answerer is told whenever replies have been sent to a client, by the goroutine that serves it: what nobody waits for is
	// best done then.
	Answerer interface {
		Answered()
	}

	// Filer tells that the n bytes at off are those of a file at fileOff, so that the server sends them from the page
	// cache to the socket without a copy through its own memory. ok is false where they are not (all) in one file; ReadAt
	// is then called. f stays the device's.
	Filer interface {
		File(off int64, n int) (f *os.File, fileOff int64, ok bool)
	}
)

// Flags qualify a request.
type Flags uint16

// The flags, with the protocol's values of command flags.
const (
	FUA      Flags = 1 << 0 // durable before it is answered
	NoHole   Flags = 1 << 1 // Zero: the space stays allocated
	FastZero Flags = 1 << 4 // Zero: fail with errors.ErrUnsupported rather than be slow
)

// Extent is a run of bytes of which the same is known.
type Extent struct {
	Len  int64
	Hole bool // not allocated: a write may find no space
	Zero bool // reads as zeroes
}

// ErrProtocol says that the other side broke the protocol; the connection is over.
var ErrProtocol = errors.New("nbd: protocol violated")

// ErrShutdown says that the server is about to go, or that the connection was closed by our side.
var ErrShutdown = errors.New("nbd: shut down")
