package nbd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"

	"vmscope/block"
)

// ReadAt reads from the export, straight into p.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	return c.ReadContext(context.Background(), p, off)
}

// ReadContext is ReadAt until ctx ends. Then p is not touched any more.
func (c *Client) ReadContext(ctx context.Context, p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, fmt.Errorf("nbd: read at %d: %w", off, block.ErrOutOfRange)
	}
	var end error
	if size := c.info.Size; int64(len(p)) > size-min(off, size) {
		p, end = p[:size-min(off, size)], io.EOF
	}
	done := 0
	for done < len(p) {
		n, err := c.readPiece(ctx, p[done:], off+int64(done))
		done += n
		if err != nil {
			return done, err
		}
	}
	return done, end
}

// readPiece reads as much as one request can.
func (c *Client) readPiece(ctx context.Context, p []byte, off int64) (int, error) {
	mask := int64(c.info.MinBlock - 1)
	if len(p) > c.info.MaxPayload {
		p = p[:c.info.MaxPayload]
	}
	if (off|int64(len(p)))&mask == 0 {
		k := &call{q: request{typ: cmdRead, off: uint64(off), len: uint32(len(p))}, buf: p}
		if err := c.do(ctx, k, nil); err != nil {
			return 0, err
		}
		return len(p), nil
	}
	if off&mask == 0 && int64(len(p)) > mask {
		return c.readPiece(ctx, p[:int64(len(p))&^mask], off)
	}
	// The edges of what is not aligned: one block.
	b := make([]byte, c.info.MinBlock)
	base := off &^ mask
	if base+int64(len(b)) > c.info.Size {
		return 0, fmt.Errorf("nbd: read of %d bytes at %d: in the last block, which is not whole: %w", len(p), off, io.ErrUnexpectedEOF)
	}
	if _, err := c.readPiece(ctx, b, base); err != nil {
		return 0, err
	}
	return copy(p, b[off-base:]), nil
}

// WriteAt writes to the export.
func (c *Client) WriteAt(p []byte, off int64) (int, error) {
	return c.WriteContext(context.Background(), p, off, 0)
}

// WriteContext is WriteAt until ctx ends; with FUA in f it is durable on return. What was asked for must be aligned to the
// server's MinBlock.
func (c *Client) WriteContext(ctx context.Context, p []byte, off int64, f Flags) (int, error) {
	if err := c.inside("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	flag, after := c.durably(f)
	done := 0
	for done < len(p) {
		b := p[done:min(len(p), done+c.info.MaxPayload)]
		k := &call{q: request{flags: flag, typ: cmdWrite, off: uint64(off) + uint64(done), len: uint32(len(b))}}
		if err := c.do(ctx, k, b); err != nil {
			return done, err
		}
		done += len(b)
	}
	return done, after(ctx)
}

// durably gives the flag to send, and what to do behind for FUA.
func (c *Client) durably(f Flags) (Flags, func(context.Context) error) {
	switch {
	case f&FUA == 0:
		return 0, func(context.Context) error { return nil }
	case c.info.FUA:
		return FUA, func(context.Context) error { return nil }
	}
	return 0, c.FlushContext
}

func (c *Client) inside(op string, off, n int64) error {
	if off < 0 || n < 0 || off > c.info.Size || n > c.info.Size-off {
		return fmt.Errorf("nbd: %s of %d bytes at %d: %w (%d bytes)", op, n, off, block.ErrOutOfRange, c.info.Size)
	}
	return nil
}

// WritePayload passes a write on to the export: a Client is a device of a server, too.
func (c *Client) WritePayload(p *Payload, off int64, f Flags) error {
	for p.Len() > 0 {
		b, err := p.Next(min(NextMax, c.info.MaxPayload))
		if err != nil {
			return err
		}
		if _, err := c.WriteContext(context.Background(), b, off, f); err != nil {
			return err
		}
		off += int64(len(b))
	}
	return nil
}

// Flush makes all writes durable that were completed before. Where the server offers no flush there is nothing to ask for.
func (c *Client) Flush() error { return c.FlushContext(context.Background()) }

// FlushContext is Flush until ctx ends.
func (c *Client) FlushContext(ctx context.Context) error {
	if !c.info.Flush {
		return nil
	}
	return c.do(ctx, &call{q: request{typ: cmdFlush}}, nil)
}

// Trim tells that nobody wants n bytes any more. It does nothing where the server does not offer it.
func (c *Client) Trim(off, n int64, f Flags) error {
	if !c.info.Trim {
		return c.inside("trim", off, n)
	}
	return c.ranged(context.Background(), cmdTrim, off, n, f)
}

// Zero makes n bytes zero. Where the server has no quick way, that is by writing, or errors.ErrUnsupported with FastZero.
func (c *Client) Zero(off, n int64, f Flags) error {
	if f&FastZero != 0 && !c.info.FastZero {
		return fmt.Errorf("nbd: fast zeroes: %w", errors.ErrUnsupported)
	}
	if c.info.WriteZeroes {
		return c.ranged(context.Background(), cmdWriteZeroes, off, n, f)
	}
	if err := c.inside("write zeroes", off, n); err != nil {
		return err
	}
	for n > 0 {
		m := min(n, int64(len(zeroes)))
		if _, err := c.WriteContext(context.Background(), zeroes[:m], off, f&FUA); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return nil
}

// Cache asks the server to have n bytes ready. It does nothing where the server does not offer it.
func (c *Client) Cache(off, n int64) error {
	if !c.info.Cache {
		return nil
	}
	return c.ranged(context.Background(), cmdCache, off, n, 0)
}

// maxRange is what a request without payload asks for at most: 32 bits, and round.
const maxRange = 1 << 31

// ranged sends a request that has no payload, in pieces where it is long.
func (c *Client) ranged(ctx context.Context, typ uint16, off, n int64, f Flags) error {
	if err := c.inside(cmdName(typ), off, n); err != nil {
		return err
	}
	most := int64(maxRange)
	if typ == cmdCache {
		most = int64(c.info.MaxPayload) // "may be subject to" it
	}
	flag, after := c.durably(f)
	flag |= f & (NoHole | FastZero)
	for n > 0 {
		m := min(n, most)
		k := &call{q: request{flags: flag, typ: typ, off: uint64(off), len: uint32(m)}}
		if err := c.do(ctx, k, nil); err != nil {
			return err
		}
		off, n = off+m, n-m
	}
	return after(ctx)
}

// Extents asks which of n bytes at off are holes or zeroes. A server that does not tell has data everywhere.
func (c *Client) Extents(dst []Extent, off, n int64, max int) ([]Extent, error) {
	return c.ExtentsContext(context.Background(), dst, off, n, max)
}

// ExtentsContext is Extents until ctx ends.
func (c *Client) ExtentsContext(ctx context.Context, dst []Extent, off, n int64, max int) ([]Extent, error) {
	if err := c.inside("block status", off, n); err != nil || n == 0 {
		return dst, err
	}
	if !c.info.Extents {
		return append(dst, Extent{Len: n}), nil
	}
	mask := int64(c.info.MinBlock - 1)
	base := off &^ mask
	end := min((off+n+mask)&^mask, c.info.Size, base+math.MaxUint32&^mask)
	k := &call{q: request{typ: cmdBlockStatus, off: uint64(base), len: uint32(end - base)}, max: max}
	if max == 1 {
		k.q.flags = flagReqOne
	}
	if err := c.do(ctx, k, nil); err != nil {
		return dst, err
	}
	for i, e := range k.exts {
		if i == 0 {
			e.Len -= off - base // a descriptor is of whole blocks
		}
		if e.Len = min(e.Len, n); e.Len <= 0 {
			break
		}
		n -= e.Len
		dst = append(dst, e)
	}
	if len(dst) == 0 {
		return dst, fmt.Errorf("nbd: block status of %d bytes at %d: %w: less than a block", n, off, ErrProtocol)
	}
	return dst, nil
}
