package detect

import (
	"encoding/binary"
	"slices"
	"time"

	"vmscope/kernel/linux"
	"vmscope/mem"
)

// Bounds of waiting for a place that is just being rewritten.
const (
	rewriteTries = 100 // in one look
	rewritePause = 5 * time.Millisecond
	strayTries   = 4 // for a place that is all written, and in no valid form
)

// rewriting decides on b, which the guest has at an address that it may rewrite
// and which is in no valid form: it, or what says where it leads, may just be
// being rewritten, so it is looked at again. fits reports how many bytes are in a
// valid form.
//
// While the kernel rewrites a place, that begins with a breakpoint. A guest that
// stands still, or whose CPUs wait for the host's, may be in that moment for
// long. So what the kernel itself says of it counts: if what was there, what will
// be, and what is done meanwhile, are all valid, the breakpoint is.
func (t *textLook) rewriting(at mem.VA, b []byte, fits func(b []byte) int) int {
	phys := t.Phys
	if c, ok := phys.(*mem.Cache); ok {
		phys = c.Source()
	}
	now := t.Kernel.View(phys)
	for try := 0; ; try++ {
		if b[0] == opInt3 {
			list, _ := now.Rewrites() // what could be read
			if i := slices.IndexFunc(list, func(r linux.Rewrite) bool { return r.At == at }); i >= 0 {
				if n := rewritten(list[i], b, fits); n > 0 {
					return n
				}
			}
		} else if try >= strayTries {
			return 0
		}
		if t.waited >= rewriteTries {
			return 0
		}
		t.waited++
		time.Sleep(rewritePause)
		if _, err := now.Mem.Read(b, at); err != nil {
			return 0
		}
		t.callees.forget()
		if n := fits(b); n > 0 {
			return n
		}
	}
}

// rewritten reports how many bytes, at which a breakpoint stands in the place of
// the first, are being rewritten from one valid form to another.
func rewritten(r linux.Rewrite, b []byte, fits func(b []byte) int) int {
	if r.Op != r.New[0] && !idle(r) || !leadsAlike(r) {
		return 0
	}
	after := slices.Clone(b)
	copy(after, r.New)
	if fits(after) == 0 {
		return 0
	}
	for _, first := range []byte{r.Old, r.New[0]} { // the others are as before, or new already
		was := slices.Clone(b)
		was[0] = first
		if n := fits(was); n > 0 {
			return n
		}
	}
	return 0
}

// idle reports whether what will stand there does nothing; that is done as a jump
// to behind it.
func idle(r linux.Rewrite) bool {
	return (r.Op == opJump || r.Op == opShort) && (begins(r.New, nop5s) || begins(r.New, nop2)) && r.To == r.At+mem.VA(len(r.New))
}

// leadsAlike reports whether what is done meanwhile leads where the new
// instruction does.
func leadsAlike(r linux.Rewrite) bool {
	switch {
	case idle(r), r.New[0] == opReturn:
		return true
	case (r.New[0] == opCall || r.New[0] == opJump) && len(r.New) == 5:
		return r.To == r.At+5+mem.VA(int64(int32(binary.LittleEndian.Uint32(r.New[1:]))))
	case r.New[0] == opShort && len(r.New) == 2:
		return r.To == r.At+2+mem.VA(int64(int8(r.New[1])))
	}
	return false
}
