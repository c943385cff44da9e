package gunzip

import (
	"errors"
	"fmt"
)

// Flags of a member's header (RFC 1952, section 2.3.1).
const (
	hasCRC     = 1 << 1
	hasExtra   = 1 << 2
	hasName    = 1 << 3
	hasComment = 1 << 4
	reserved   = 0xe0
)

const maxName = 64 << 10 // bytes of a name or comment

var errNoMember = errors.New("what follows was not packed by gzip")

// member reads the header of a member, or the end: nothing, or zeros as tapes have them.
func (d *decoder) member() error {
	first := d.bit() == 0
	if !first {
		for {
			if d.bit() == d.size*8 {
				d.state = atEnd
				return nil
			}
			if err := d.need(8); err != nil {
				return err
			}
			if byte(d.hold) != 0 {
				break
			}
			if _, err := d.bits(8); err != nil {
				return err
			}
		}
	}
	magic, err := d.bits(24)
	if err != nil {
		return err
	}
	if magic != 0x088b1f {
		return errNoMember
	}
	flags, err := d.bits(8)
	if err == nil && flags&reserved != 0 {
		err = fmt.Errorf("flags %#x", flags)
	}
	if err == nil {
		err = d.skip(6) // time, level, system
	}
	if err == nil && flags&hasExtra != 0 {
		var n uint32
		if n, err = d.bits(16); err == nil {
			err = d.skip(int(n))
		}
	}
	for _, flag := range []uint32{hasName, hasComment} {
		for n := 0; err == nil && flags&flag != 0; n++ {
			var b uint32
			if b, err = d.bits(8); err == nil && b == 0 {
				break
			}
			if n == maxName {
				err = fmt.Errorf("a name of more than %d bytes", maxName)
			}
		}
	}
	if err == nil && flags&hasCRC != 0 {
		err = d.skip(2)
	}
	d.state = atBlock
	return err
}

func (d *decoder) skip(bytes int) error {
	for range bytes {
		if _, err := d.bits(8); err != nil {
			return err
		}
	}
	return nil
}

// trailer reads what a member has at its end: check sum and size.
func (d *decoder) trailer() error {
	if _, err := d.bits(d.n % 8); err != nil {
		return err
	}
	sum, err := d.bits(32)
	if err != nil {
		return err
	}
	whole, err := d.bits(32)
	if err != nil {
		return err
	}
	if d.check && (sum != d.sum || whole != d.whole) {
		return fmt.Errorf("check sum %#x of %d bytes, not %#x of %d", d.sum, d.whole, sum, whole)
	}
	d.state = atMember
	return nil
}
