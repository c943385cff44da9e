package vendorfile

import (
	"bytes"
	"encoding/binary"
	"slices"
	"strings"

	"vmscope/mem"
)

// Matcher says whether what stands at a place in a guest is valid there. It asks
// the guest for what only that has.
type Matcher struct {
	Kernel *Kernel
	// Read reads the guest's memory and reports whether it could.
	Read func(b []byte, va mem.VA) bool
	// Leads reports whether a branch of ftrace's, or of a static call, may lead to
	// an address; 0: whether nothing may be called.
	Leads func(s Site, to mem.VA) bool
}

// Match reports how many bytes of got, which the guest has at s.At, are in a
// form that is valid for the site; 0 if they are in none. As the file has them
// is valid.
func (m *Matcher) Match(im *Image, all *Sites, s Site, got []byte) int {
	was := im.At(s.At)
	if int(s.Len) > len(was) || s.Len == 0 {
		return 0
	}
	if s.Kind != Alternative {
		return m.form(s, was, s.At, got)
	}
	n := int(s.Len)
	if n > len(got) {
		return 0
	}
	t := trial{m: m, all: all, at: s.At, got: got[:n]}
	if t.same(s.At, was[:n]) {
		return n
	}
	for _, r := range all.replacements[s.first : s.first+s.n] {
		by := im.At(r.at)
		if int(r.n) > len(by) || int(r.n) > n {
			continue
		}
		if t.same(r.at, by[:r.n]) {
			return n
		}
	}
	// A call by way of pv_ops may be direct (ALT_FLAG_DIRECT_CALL).
	return m.form(Site{At: s.At, Kind: Paravirt, Len: s.Len}, was, s.At, got[:n])
}

// trial asks whether code that is listed elsewhere is what stands at a place.
type trial struct {
	m   *Matcher
	all *Sites
	at  mem.VA
	got []byte
}

// same reports whether the bytes of the file at from, and then nothing, are what
// stands at the place: with what is relative to where it stands moved, with
// other instructions that do nothing, and with what the file lists for rewriting
// within rewritten.
func (t *trial) same(from mem.VA, b []byte) bool {
	code := bytes.Repeat([]byte{0x90}, len(t.got))
	copy(code, b)
	for i := 0; i < len(code); {
		if i < len(b) {
			done := 0
			t.all.at(from+mem.VA(i), func(s Site) bool {
				if s.Kind != Alternative && int(s.Len) <= len(code)-i || s.Kind == StaticCall || s.Kind == Retpoline {
					done = t.m.form(s, code[i:], t.at+mem.VA(i), t.got[i:])
				}
				return done == 0
			})
			if done > 0 {
				i += done
				continue
			}
		}
		if n := idle(code[i:]); n > 0 {
			if idle(t.got[i:]) != n {
				return false
			}
			i += n
			continue
		}
		n := t.step(from, code, i, len(b))
		if n == 0 {
			return false
		}
		i += n
	}
	return true
}

// step compares one instruction of what has n bytes at from, and returns its
// length; 0 if another one stands there.
func (t *trial) step(from mem.VA, code []byte, i, n int) int {
	length, off, size := instruction(code[i:])
	if length > len(code)-i {
		return 0
	}
	want, got := code[i:i+length], t.got[i:]
	if size != 4 || off+4 > length || from == t.at {
		return whole(bytes.HasPrefix(got, want), length)
	}
	rel := mem.VA(int64(int32(binary.LittleEndian.Uint32(want[off:]))))
	to := from + mem.VA(i+length) + rel
	if to-from <= mem.VA(n) { // within what is moved
		return whole(bytes.HasPrefix(got, want), length)
	}
	moved := bytes.Clone(want)
	binary.LittleEndian.PutUint32(moved[off:], uint32(to-t.at-mem.VA(i+length)))
	if bytes.HasPrefix(got, moved) {
		return length
	}
	if want[0] == 0xe8 && length == 5 {
		op, to2, _ := branch(got, t.at+mem.VA(i))
		return whole(op == 0xe8 && t.m.uncounted(to2) == to, length)
	}
	// A jump that is not far is made short.
	if want[0] == 0xe9 && length == 5 && got[0] == 0xeb && t.at+mem.VA(i+2)+mem.VA(int64(int8(got[1]))) == to {
		return whole(bytes.Equal(got[2:5], []byte{0xcc, 0xcc, 0xcc}) || idle(got[2:]) >= 3, length)
	}
	return 0
}

func whole(ok bool, n int) int {
	if ok {
		return n
	}
	return 0
}

// branch is where the branch at the start of b, which lies at an address, leads:
// a jump, a call, a conditional jump, of 32 bits, maybe behind a prefix.
func branch(b []byte, at mem.VA) (op byte, to mem.VA, n int) {
	p := 0
	if len(b) > 0 && b[0] == 0x2e {
		p = 1
	}
	if len(b) >= p+6 && b[p] == 0x0f && b[p+1]&0xf0 == 0x80 {
		op, p = b[p+1], p+1
	} else if len(b) >= p+5 && (b[p] == 0xe8 || b[p] == 0xe9) {
		op = b[p]
	} else {
		return 0, 0, 0
	}
	return op, at + mem.VA(p+5) + mem.VA(int64(int32(binary.LittleEndian.Uint32(b[p+1:])))), p + 5
}

// form is Match for all but alternatives: was is what the file has at the site,
// got what stands in its place, at an address that may be another one.
func (m *Matcher) form(s Site, was []byte, at mem.VA, got []byte) int {
	switch s.Kind {
	case Lock:
		return whole(len(got) > 0 && (got[0] == 0xf0 || got[0] == 0x3e), 1)
	case Seal:
		for _, mark := range [][]byte{{0xf3, 0x0f, 0x1e, 0xfa}, {0x0f, 0x1f, 0x40, 0xd6}, {0x66, 0x0f, 0x1f, 0x00}} {
			if bytes.HasPrefix(got, mark) {
				return 4
			}
		}
	case Return:
		if bytes.HasPrefix(got, []byte{0xc3, 0xcc, 0xcc, 0xcc, 0xcc}) {
			return 5
		}
		op, to, n := branch(got, at)
		return whole(op == 0xe9 && n == 5 && m.Kernel.returns[m.Kernel.linked(to)], 5)
	case Retpoline:
		return m.retpoline(s, was, at, got)
	case Call:
		op, to, n := branch(was, s.At)
		op2, to2, n2 := branch(got, at)
		return whole(op == op2 && n == 5 && n2 == 5 && (to == to2 || to == m.uncounted(to2)), 5)
	case Ftrace:
		if idle5(got) {
			return 5
		}
		op, to, n := branch(got, at)
		return whole((op == 0xe8 || op == 0xe9) && n == 5 && m.Leads(s, to), 5)
	case JumpLabel:
		switch {
		case idle5(got):
			return 5
		case len(got) >= 2 && got[0] == 0x66 && got[1] == 0x90:
			return 2
		case len(got) >= 2 && got[0] == 0xeb:
			return whole(at+2+mem.VA(int64(int8(got[1]))) == s.Target, 2)
		}
		op, to, n := branch(got, at)
		return whole(op == 0xe9 && n == 5 && to == s.Target, 5)
	case StaticCall, FtraceCall:
		if idle5(got) || slices.ContainsFunc(noCalls, func(none []byte) bool { return bytes.HasPrefix(got, none) }) {
			return whole(m.Leads(s, 0), 5)
		}
		_, to, n := branch(got, at)
		return whole(n > 0 && got[0] != 0x2e && (m.Leads(s, to) || m.Leads(s, m.uncounted(to))), n)
	case Paravirt:
		return m.paravirt(was[:s.Len], s.At, at, got)
	case Constant:
		value := make([]byte, s.Len)
		return whole(m.Read(value, s.Target) && bytes.HasPrefix(got, value), int(s.Len))
	}
	return 0
}

// idle5 reports whether b begins with one instruction of five bytes that does
// nothing.
func idle5(b []byte) bool { return len(b) >= 5 && nop(b) == 5 }

// noCalls are what a static call is when there is nothing to call: return, "xor
// eax, eax" in five bytes, a warning (arch/x86/kernel/static_call.c).
var noCalls = [][]byte{
	{0xc3, 0xcc, 0xcc, 0xcc, 0xcc},
	{0x2e, 0x2e, 0x2e, 0x31, 0xc0},
	{0x66, 0x66, 0x48, 0x31, 0xc0},
	{0x67, 0x48, 0x0f, 0xb9, 0x3a},
}

// linked is where an address was linked.
func (k *Kernel) linked(va mem.VA) mem.VA { return va - mem.VA(k.slide) }

// retpoline is form for a branch to the thunk of an indirect branch: that branch
// itself, maybe behind a fence, or one to another thunk of the same register
// (arch/x86/kernel/alternative.c: patch_retpoline).
func (m *Matcher) retpoline(s Site, was []byte, at mem.VA, got []byte) int {
	op, to, n := branch(was, s.At)
	reg, ok := m.Kernel.branches[m.Kernel.linked(to)]
	if !ok || n > len(got) {
		return 0
	}
	if op2, to2, n2 := branch(got, at); n2 == n && op2 == op && m.thunk(to2, reg) {
		return n
	}
	i := 0
	if op&0xf0 == 0x80 { // jcc thunk: the opposite jcc over the branch
		if got[0] != 0x70|op&0x0f^1 || int(got[1]) != n-2 {
			return 0
		}
		i = 2
		if op2, to2, n2 := branch(got[i:n], at+2); n2 > 0 && n2 == n-2 && op2 == 0xe9 && m.thunk(to2, reg) {
			return n
		}
		op = 0xe9
	}
	if bytes.HasPrefix(got[i:n], []byte{0x0f, 0xae, 0xe8}) { // lfence
		i += 3
	}
	direct := []byte{0xff, 0xd0 | reg&7}
	if op == 0xe9 {
		direct[1] = 0xe0 | reg&7
	}
	if reg >= 8 {
		direct = append([]byte{0x41}, direct...)
	}
	for i < n && got[i] == 0x2e { // a prefix that means nothing
		i++
	}
	if !bytes.HasPrefix(got[i:n], direct) {
		return 0
	}
	rest := got[i+len(direct) : n]
	return whole(idle(rest) == len(rest) || op == 0xe9 && strings.Trim(string(rest), "\xcc") == "", n)
}

// thunk reports whether at an address there is a thunk of an indirect branch by
// a register: one of the kernel's own, or one that it made for itself (ITS).
func (m *Matcher) thunk(to mem.VA, reg uint8) bool {
	if r, ok := m.Kernel.branches[m.Kernel.linked(to)]; ok {
		return r == reg
	}
	want := []byte{0x41, 0xff, 0xe0 | reg&7, 0xcc}
	if reg < 8 {
		want = want[1:]
	}
	got := make([]byte, len(want))
	return m.Read(got, to) && bytes.Equal(got, want)
}

// uncounted is the function before which there is, at an address, code that
// counts the depth of calls; the address itself if there is none.
func (m *Matcher) uncounted(to mem.VA) mem.VA { return to + mem.VA(m.counting(to)) }

// counting reports how many bytes at an address are the kernel's template of such
// code; 0 if they are not.
func (m *Matcher) counting(at mem.VA) int {
	k := m.Kernel
	got := make([]byte, len(k.counter))
	if len(got) == 0 || !m.Read(got, at) {
		return 0
	}
	t := trial{m: m, all: new(Sites), at: at, got: got}
	return whole(t.same(k.counterAt+mem.VA(k.slide), k.counter), len(got))
}

// Padding reports how many bytes from an address on, where the file has padding
// before a function, count the depth of its calls; 0 if they do not.
func (m *Matcher) Padding(im *Image, at mem.VA) int {
	n := len(m.Kernel.counter)
	if b := im.At(at); n > len(b) || idle(b[:n]) != n {
		return 0
	}
	return m.counting(at)
}

// paravirt is form for a call or jump by way of pv_ops: as it is, direct to
// where the guest's slot leads, or what stands for a function that does little.
func (m *Matcher) paravirt(was []byte, wasAt, at mem.VA, got []byte) int {
	n := len(was)
	if n > len(got) || n < 6 {
		return 0
	}
	got = got[:n]
	slot, op, length := slotOf(was, wasAt)
	if length == 0 {
		return 0
	}
	// One struct up to v6.19, then one for spinlocks as well.
	ops, off, err := m.Kernel.symbols.Nearest(m.Kernel.linked(slot))
	if err != nil || !strings.HasPrefix(ops.Name, "pv_ops") || off >= ops.Size {
		return 0
	}
	var word [8]byte
	if !m.Read(word[:], slot) {
		return 0
	}
	to := mem.VA(binary.LittleEndian.Uint64(word[:]))
	if op2, to2, n2 := branch(got, at); n2 == 5 && op2 == op && (to2 == to || m.uncounted(to2) == to) && idle(got[5:]) == n-5 {
		return n
	}
	if idle(got) == n && m.Kernel.Named(to, "_paravirt_nop", "x86_nop", "nop_func") {
		return n
	}
	for _, b := range m.Kernel.natives(off) {
		if len(b) > 0 && bytes.HasPrefix(got, b) && idle(got[len(b):]) == n-len(b) {
			return n
		}
	}
	if m.Kernel.Named(to, "_paravirt_ident_64") && bytes.HasPrefix(got, []byte{0x48, 0x89, 0xf8}) && idle(got[3:]) == n-3 {
		return n
	}
	return 0
}

// slotOf is the pointer through which the call or jump at the start of b goes,
// and the opcode of the direct one.
func slotOf(b []byte, at mem.VA) (slot mem.VA, op byte, n int) {
	if len(b) < 6 || b[0] != 0xff {
		return 0, 0, 0
	}
	le := binary.LittleEndian
	switch b[1] {
	case 0x15, 0x25: // call, jmp [rip+x]
		slot, n = at+6+mem.VA(int64(int32(le.Uint32(b[2:])))), 6
	case 0x14, 0x24: // call, jmp [x]
		if len(b) < 7 || b[2] != 0x25 {
			return 0, 0, 0
		}
		slot, n = mem.VA(int64(int32(le.Uint32(b[3:])))), 7
	}
	op = 0xe8
	if b[1]&0x20 != 0 {
		op = 0xe9
	}
	return slot, op, n
}
