package nbd

import (
	"io"

	"vmscope/block"
)

// Export is one disk under a name.
type Export struct {
	Name        string // "" is the one that a client gets that asks for none; without such a one it gets the first
	Description string // for people
	Device      block.Device
	ReadOnly    bool // also where the device could be written
	MaxConns    int  // connections at any time; 0: as the server's
	// MinBlock is the alignment that requests must have, a power of two up to 64 KiB; 0 means 1. Clients that do not ask
	// for it are refused if it is more than 1. PreferredBlock is that which is fastest; 0 means 4096. MaxPayload bounds
	// the length of reads and writes; 0 means 32 MiB, which is also the most that clients are used to.
	MinBlock, PreferredBlock, MaxPayload int
}

// caps is what an export can do, and says that it can.
type caps struct {
	size                            int64
	flags                           uint16
	minBlock, preferred, maxPayload int

	dev      block.Device
	payload  PayloadWriter // nil where read-only, or written by writer
	writer   io.WriterAt
	flusher  Flusher
	trimmer  Trimmer
	zeroer   Zeroer
	extenter Extenter
	cacher   Cacher
	filer    Filer
	answerer Answerer
}

// writable reports whether writes are taken.
func (c *caps) writable() bool { return c.payload != nil || c.writer != nil }

// caps asks the device what it is and can do.
func (e *Export) caps(structured bool) caps {
	c := caps{dev: e.Device, size: e.Device.Size(), minBlock: 1, preferred: defaultPreferred, maxPayload: defaultPayload}
	if n := e.MinBlock; n > 0 && n <= 64<<10 && n&(n-1) == 0 {
		c.minBlock = n
	}
	if e.PreferredBlock > 0 {
		c.preferred = e.PreferredBlock
	}
	c.preferred = max(c.preferred, c.minBlock)
	if e.MaxPayload > 0 {
		c.maxPayload = min(e.MaxPayload, maxPayload)
	}
	c.maxPayload = max(c.maxPayload&^(c.minBlock-1), c.preferred, c.minBlock)
	// What does not fill a block at the end cannot be reached.
	c.size = max(0, c.size) &^ int64(c.minBlock-1)

	c.flags = tfHasFlags
	if structured {
		c.flags |= tfDF
	}
	c.extenter, _ = e.Device.(Extenter)
	c.filer, _ = e.Device.(Filer)
	c.answerer, _ = e.Device.(Answerer)
	if c.cacher, _ = e.Device.(Cacher); c.cacher != nil {
		c.flags |= tfCache
	}
	if m, ok := e.Device.(MultiConner); ok && m.MultiConn() && e.MaxConns != 1 {
		c.flags |= tfMultiConn
	}
	if c.flusher, _ = e.Device.(Flusher); c.flusher != nil {
		c.flags |= tfFlush
	}
	if r, ok := e.Device.(ReadOnlyer); !e.ReadOnly && !(ok && r.ReadOnly()) {
		if c.payload, _ = e.Device.(PayloadWriter); c.payload == nil {
			c.writer, _ = e.Device.(io.WriterAt)
		}
	}
	if !c.writable() {
		c.flags |= tfReadOnly
		return c
	}
	if c.flusher != nil {
		c.flags |= tfFUA
	}
	if c.trimmer, _ = e.Device.(Trimmer); c.trimmer != nil {
		c.flags |= tfTrim
	}
	c.flags |= tfWriteZeroes
	if c.zeroer, _ = e.Device.(Zeroer); c.zeroer != nil {
		c.flags |= tfFastZero
	}
	return c
}
