package ksym

import (
	"context"
	"errors"
	"fmt"
	"unsafe"

	"vmscope/mem"
)

// chunk is how much a source that is not mapped is read at a time, in bytes.
const chunk = 1 << 20

// patience is how much mapped memory is searched before the context is looked at
// again, in bytes.
const patience = 64 << 20

// maxUnreachable is how many failures in a row make a source gone. A dump on a
// bad disk has fewer.
const maxUnreachable = 16

// scan calls f with each page of the extents, in order, until f returns false.
// Pages that cannot be read are passed over: another one may hold what is
// searched. The page is the guest's memory itself where that is mapped into
// this process, so it changes under f; f runs inside mem.Guard.
//
// It fails when ctx ends, and when the source is gone: so many pages in a row
// cannot be reached.
func scan(ctx context.Context, r mem.PhysReader, extents []mem.Range, f func(pa mem.PA, page *[mem.PageSize]byte) bool) error {
	ram := mem.RAMOf(r)
	return mem.Guard(func() error {
		var buf []byte
		unreachable := 0
		asked := uint64(0) // bytes since ctx was looked at
		for _, x := range extents {
			// Whole pages: a table or text that we search never shares its page
			// with what is not RAM.
			pa := mem.PA(align(uint64(x.Start), mem.PageSize))
			end := x.End() &^ (mem.PageSize - 1)
			if end < pa || x.End() < x.Start {
				continue
			}
			for pa < end {
				if asked += mem.PageSize; ram == nil || asked >= patience {
					if err := ctx.Err(); err != nil {
						return err
					}
					asked = 0
				}
				if ram != nil {
					if q := ram.At(pa, mem.PageSize); q != nil {
						if !f(pa, (*[mem.PageSize]byte)(unsafe.Pointer(q))) {
							return nil
						}
						pa += mem.PageSize
						continue
					}
				}
				if buf == nil {
					buf = make([]byte, chunk)
				}
				size := min(uint64(end-pa), chunk)
				if ram != nil {
					size = mem.PageSize // only this one is a hole
				}
				n, err := r.ReadPhys(buf[:size], pa)
				if n > 0 || !errors.Is(err, mem.ErrUnreachable) {
					unreachable = 0
				} else if unreachable++; unreachable == maxUnreachable {
					return err
				}
				n &^= mem.PageSize - 1
				for at := 0; at < n; at += mem.PageSize {
					if !f(pa+mem.PA(at), (*[mem.PageSize]byte)(buf[at:])) {
						return nil
					}
				}
				pa += mem.PA(n)
				if err != nil {
					pa += mem.PageSize // the page that failed
				}
			}
		}
		return nil
	})
}

// tooMany says that a search was ended by its bound: what it found so far is
// all it gives. Guest memory that holds so many look-alikes was made so.
func tooMany(what string, limit int) error {
	return fmt.Errorf("more than %d %s in guest memory: %w", limit, what, mem.ErrInconsistent)
}
